"""Which tokens a model reads, and at which of them its reward is read.

Users of other libraries reported each of these cases as a bug of theirs.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from rm_jax.batch.group import join, make_group, tokenise
from rm_jax.batch.tokenise import HH_TEMPLATE, Convention, TextEncoder
from rm_jax.batch.tokens import Cut, common_prefix, cut_message
from rm_jax.data.report import Report, RowError
from rm_jax.errors import InputError
from rm_jax.pretrained.source import load_tokenizer
from rm_jax.types import Example
from rm_jax.world import make_tokenizer
from tests.conftest import CHAT, decoder_tokenizer, encoder_tokenizer

BOS, EOS = 1, 2


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


def one(tokenizer, prompt, response, **convention):
  (sequence,) = TextEncoder(tokenizer, Convention(**convention)).sequences([(prompt, response)])
  if isinstance(sequence, RowError):
    raise sequence
  return sequence


def text(tokenizer, ids):
  return tokenizer.decode(ids)


def test_strings_are_one_text_with_one_bos_and_one_eos():
  tokenizer = decoder_tokenizer()
  s = one(tokenizer, "ab", "cd")
  assert text(tokenizer, s.ids) == "<s>abcd</s>"
  assert s.prompt == 3  # <s> a b
  assert s.marks.tolist() == [len(s.ids) - 1]
  # One that is there already is not doubled; 'none' adds none.
  assert text(tokenizer, one(tokenizer, "ab", "cd</s>").ids) == "<s>abcd</s>"
  assert text(tokenizer, one(tokenizer, "ab", "cd", eos="none").ids) == "<s>abcd"


def test_chat_template_is_applied_once_and_brings_its_own_bos():
  tokenizer = decoder_tokenizer()
  s = one(tokenizer, (user("hi"),), (assistant("yo"),))
  assert text(tokenizer, s.ids) == "<s>user:hi</s>\n<s>assistant:yo</s>\n"
  assert text(tokenizer, s.ids[: s.prompt]) == "<s>user:hi</s>\n<s>assistant:"


def test_template_without_eos_gets_one():
  tokenizer = decoder_tokenizer(chat=HH_TEMPLATE)
  s = one(tokenizer, (user("hi"),), (assistant("yo"),))
  assert text(tokenizer, s.ids) == "<s>\n\nHuman: hi\n\nAssistant: yo</s>"


def test_template_that_asks_for_the_date_gets_the_same_one_every_day():
  tokenizer = decoder_tokenizer(
    chat="{{ strftime_now('%d') }}|{{ date_string }}|"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
  )
  s = one(tokenizer, (user("a"),), (assistant("b"),), eos="none", date="01 Jan 2020")
  assert text(tokenizer, s.ids) == "<s>01 Jan 2020|01 Jan 2020|ab"


def test_hf_pooling_skips_what_equals_the_pad_token():
  tokenizer = decoder_tokenizer(pad="</s>")
  with_eos = one(tokenizer, "ab", "cd</s>", eos="none", pooling="hf")
  assert with_eos.ids[-1] == EOS
  assert with_eos.marks.tolist() == [len(with_eos.ids) - 2]
  # The token of the convention is skipped, and not the tokenizer's where it names one.
  for pad, back in ((EOS, 2), (0, 1), (-1, 1), (10**12, 1)):
    got = one(tokenizer, "ab", "cd</s>", eos="none", pooling="hf", pad=pad)
    assert got.marks.tolist() == [len(got.ids) - back]
  assert one(decoder_tokenizer(), "", "<pad><pad>", pooling="hf", eos="none", pad=0).marks == 0
  # Ours reads the mark that was decided, whatever the pad token is.
  assert one(tokenizer, "ab", "cd", pooling="last").marks.tolist() == [len("<abcd>") - 1]


def test_border_merges_belong_to_the_branch():
  tokenizer = decoder_tokenizer(merges=[("b", "c")])
  encoder = TextEncoder(tokenizer, Convention())
  merged, plain = encoder.sequences([("ab", "cd"), ("ab", "xd")])
  assert text(tokenizer, merged.ids) == "<s>abcd</s>"
  assert len(merged.ids) == 5  # <s> a bc d </s>
  group = make_group([merged, plain], Example("ab", ("cd", "xd"), (1.0, 0.0)))
  assert group.shared == 2  # <s> a: the prompt's b is in a merge of the first response


def test_shared_part_is_the_prompts_own_and_holds_no_mark():
  encoder = TextEncoder(decoder_tokenizer(), Convention())
  same_start = encoder.sequences([("ab", "same one"), ("ab", "same two")])
  group = make_group(same_start, Example("ab", ("same one", "same two"), (1.0, 0.0)))
  assert group.shared == 3  # not 'same ': that is the responses'
  empty = TextEncoder(decoder_tokenizer(), Convention(eos="none")).sequences(
    [("ab", ""), ("ab", "c")]
  )
  group = make_group(empty, Example("ab", ("", "c"), (1.0, 0.0)))
  assert group.shared == 2
  assert (group.marks >= group.shared).all()


def test_cut_takes_the_oldest_turns_first_and_keeps_system_and_end():
  tokenizer = decoder_tokenizer()
  prompt = (
    {"role": "system", "content": "S"},
    user("oldest"),
    assistant("older"),
    user("new"),
  )
  full = one(tokenizer, prompt, (assistant("end"),), max_length=1000)
  assert full.cut == 0
  s = one(tokenizer, prompt, (assistant("end"),), max_length=len(full.ids) - 1)
  expected = "<s>system:S</s>\n<s>user:new</s>\n<s>assistant:end</s>\n"
  assert text(tokenizer, s.ids) == expected
  assert text(tokenizer, s.ids[: s.prompt]) == "<s>system:S</s>\n<s>user:new</s>\n<s>assistant:"
  assert s.cut == len(full.ids) - len(s.ids)
  # Then the oldest tokens of what is left, behind the template's opening.
  t = one(tokenizer, prompt, (assistant("end"),), max_length=len(s.ids) - 2)
  assert text(tokenizer, t.ids) == expected.replace("new", "w")


def _cut_turn_by_turn(encoder, prompt, response, limit):
  """The rule as it is said: the oldest exchange goes, and again, until the rest fits."""
  while True:
    text = encoder.render((*prompt, *response))
    ids = encoder._with_eos(encoder.opened([text], special=False)[0], text)
    opens = [i for i, m in enumerate(prompt) if m["role"] != "system"]
    opener = prompt[opens[0]]["role"] if opens else ""
    later = [i for i in opens[1:] if prompt[i]["role"] == opener]
    if len(ids) <= limit or not later:
      return prompt, ids
    system = [m for m in prompt[: later[0]] if m["role"] == "system"]
    prompt = [*system, *prompt[later[0] :]]


@pytest.mark.parametrize("chat", [CHAT, HH_TEMPLATE], ids=["chat", "hh"])
def test_cut_leaves_out_as_few_turns_as_needed(chat):
  rng = np.random.default_rng(0)
  cut = 0
  for _ in range(150):
    roles = ["user", "assistant"] * 7
    if chat is CHAT:
      for _ in range(rng.integers(0, 3)):
        roles.insert(int(rng.integers(0, 9)), "system")
    roles = roles[: int(rng.integers(1, 15))]
    prompt = [
      {"role": r, "content": "".join(rng.choice(["a", "b"], rng.integers(30)))} for r in roles
    ]
    response = [assistant("x" * int(rng.integers(1, 9)))]
    limit = int(rng.integers(20, 250))
    encoder = TextEncoder(decoder_tokenizer(chat=chat), Convention(max_length=limit))
    (s,) = encoder.sequences([(tuple(prompt), tuple(response))])
    _, expected = _cut_turn_by_turn(encoder, prompt, response, limit)
    if len(expected) <= limit:
      assert s.ids.tolist() == expected.tolist()
      cut += s.cut > 0
    else:
      assert len(s.ids) == limit
      assert s.ids[-5:].tolist() == expected[-5:].tolist()
  assert cut > 20


def test_cut_leaves_a_system_turn_where_it_stands():
  tokenizer = decoder_tokenizer()
  system = {"role": "system", "content": "S"}
  prompt = (user("1"), assistant("2"), user("3"), system, assistant("4"), user("5"))
  s = one(tokenizer, prompt, (assistant("end"),), max_length=65)
  kept = "<s>user:3</s>\n<s>system:S</s>\n<s>assistant:4</s>\n<s>user:5</s>\n"
  assert text(tokenizer, s.ids) == kept + "<s>assistant:end</s>\n"


def test_a_system_turn_that_is_too_long_leaves_the_response_whole():
  """What is left of the prompt is still the prompt's: a mean does not run over it."""
  tokenizer = decoder_tokenizer()
  prompt = ({"role": "system", "content": "S" * 50}, user("q"))
  whole = one(tokenizer, prompt, (assistant("end"),))
  own = len(whole.ids) - whole.prompt
  s = one(tokenizer, prompt, (assistant("end"),), max_length=40, pooling="mean")
  assert len(s.ids) == 40
  assert len(s.ids) - s.prompt == own
  assert averaged(tokenizer, s) == [text(tokenizer, whole.ids[whole.prompt :])]


def test_cut_of_a_long_conversation_reads_little_more_than_what_fits():
  prompt = tuple((user, assistant)[n % 2](f"turn {n} " * 10) for n in range(799))
  encoder = TextEncoder(decoder_tokenizer(), Convention(max_length=500))
  read = []
  ids = encoder._ids
  encoder._ids = lambda texts, special: read.append(sum(map(len, texts))) or ids(texts, special)
  (s,) = encoder.sequences([(prompt, (assistant("end"),))])
  assert s.cut > 60_000
  assert sum(read[2:]) < 20 * 500  # behind the whole and its prompt


def test_a_template_that_refuses_a_shorter_conversation_has_tokens_cut():
  chat = "{% if messages[0].content != 'first' %}{{ raise_exception('no') }}{% endif %}" + CHAT
  encoder = TextEncoder(decoder_tokenizer(chat=chat), Convention(max_length=60))
  prompt = (user("first"), *(turn("x" * 20) for turn in (assistant, user) * 3))
  found = encoder.sequences([(prompt, (assistant("end"),))])[0]
  # It refuses what the oldest turn's opening is looked for with, too: a fault of the row.
  assert isinstance(found, RowError)
  assert found.reason == "template_error"


def test_no_token_is_no_sequence():
  encoder = TextEncoder(decoder_tokenizer(bos=False), Convention(eos="none"))
  nothing, something = encoder.sequences([("", ""), ("", "a")])
  assert nothing.reason == "no_tokens"
  assert something.marks.tolist() == [0]


def test_cut_of_strings_keeps_bos_and_the_end():
  tokenizer = decoder_tokenizer()
  s = one(tokenizer, "abcdef", "xyz", max_length=7)
  assert text(tokenizer, s.ids) == "<s>efxyz</s>"
  assert s.prompt == 3
  # A response that alone is too long loses its beginning, never its end.
  t = one(tokenizer, "abcdef", "uvwxyz", max_length=5)
  assert text(tokenizer, t.ids) == "<s>xyz</s>"
  assert (s.cut, s.cut.response) == (4, 0)
  assert (t.cut, t.cut.response) == (6 + 3, 3)


@pytest.mark.parametrize("limit", range(1, 16))
def test_cut_tokens_are_counted_where_they_were(limit):
  """Of strings, messages and an encoder's pairs: what is left of a response and what is cut."""
  special = 3  # tokens of an encoder's pair, which no limit may be as low as
  turns = ({"role": "user", "content": "abcdef"},), ({"role": "assistant", "content": "uvwxyz"},)
  for tokenizer, pair, whole in (
    (decoder_tokenizer(), ("abcdef", "uvwxyz"), Convention()),
    (decoder_tokenizer(bos=False), ("", "uvwxyz"), Convention()),
    (decoder_tokenizer(chat=CHAT), turns, Convention()),
    (encoder_tokenizer(), ("abcdef", "uvwxyz"), Convention(encoder=True, pooling="first")),
  ):
    if whole.encoder and limit <= special:
      continue
    (full,) = TextEncoder(tokenizer, whole).sequences([pair])
    (cut,) = TextEncoder(tokenizer, dataclasses.replace(whole, max_length=limit)).sequences([pair])
    assert cut.cut == len(full.ids) - len(cut.ids)
    response = len(full.ids) - full.prompt
    assert cut.cut.response == response - (len(cut.ids) - cut.prompt)


def test_the_message_says_what_was_cut_of_prompts_and_of_responses():
  cuts = [Cut(0), Cut(39), Cut(1), Cut(5, 3), Cut(4, 4)]
  assert cut_message(cuts[:3], "64 tokens") == (
    "2 of 3 rows are longer than 64 tokens: of their prompts 40 tokens are left out, the oldest "
    "first"
  )
  assert cut_message(cuts, "64 tokens") == (
    "4 of 5 rows are longer than 64 tokens: of their prompts 42 tokens are left out, the oldest "
    "first, and of 2 responses, too long by themselves, the first 7 tokens"
  )


def test_cut_depends_on_the_response_alone():
  tokenizer = decoder_tokenizer()
  encoder = TextEncoder(tokenizer, Convention(max_length=10))
  alone = encoder.sequences([("abcdefgh", "x")])[0]
  beside = encoder.sequences([("abcdefgh", "x"), ("abcdefgh", "a much longer one")])[0]
  np.testing.assert_array_equal(alone.ids, beside.ids)


def test_a_prompts_own_limit_leaves_the_same_of_it_before_every_response():
  tokenizer = decoder_tokenizer()
  options = dict(max_length=12, max_prompt_length=4)
  short, long = (one(tokenizer, "abcdef", response, **options) for response in ("x", "uvwxyz"))
  assert text(tokenizer, short.ids) == "<s>defx</s>"
  assert text(tokenizer, long.ids) == "<s>defuvwxyz</s>"
  assert (short.prompt, short.cut, short.cut.response) == (4, 3, 0)
  assert join([short, long]).shared == 4
  # A prompt within the limit is whole, and a longer response still costs it its beginning.
  assert text(tokenizer, one(tokenizer, "abc", "x", **options).ids) == "<s>abcx</s>"
  long = one(tokenizer, "abcdef", "qrstuvwxyz", **options)
  assert text(tokenizer, long.ids) == "<s>qrstuvwxyz</s>"
  assert (long.cut, long.cut.response) == (6, 0)


def test_a_prompts_own_limit_leaves_out_whole_turns_first():
  tokenizer = decoder_tokenizer()
  prompt = ({"role": "system", "content": "S"}, user("oldest"), assistant("older"), user("new"))
  rest = "<s>system:S</s>\n<s>user:new</s>\n<s>assistant:"
  whole = one(tokenizer, prompt, (assistant("end"),), max_length=1000)
  for response in ("end", "a longer one"):
    limit = dict(max_length=1000, max_prompt_length=whole.prompt - 1)
    s = one(tokenizer, prompt, (assistant(response),), **limit)
    assert text(tokenizer, s.ids[: s.prompt]) == rest
    assert text(tokenizer, s.ids[s.prompt :]) == f"{response}</s>\n"
    # Then the oldest tokens of what is left, but not the opening, however low the limit is.
    for fewer, left in ((2, "w"), (3, ""), (20, "")):
      limit = dict(max_length=1000, max_prompt_length=s.prompt - fewer)
      t = one(tokenizer, prompt, (assistant(response),), **limit)
      if left:
        assert text(tokenizer, t.ids[: t.prompt]) == rest.replace("new", left)
      else:
        assert text(tokenizer, t.ids[: t.prompt]).startswith("<s>system:S</s>\n<s>user:")
        assert text(tokenizer, t.ids[t.prompt :]) == f"{response}</s>\n"


def test_a_prompts_own_limit_of_steps_and_of_encoders():
  tokenizer = decoder_tokenizer()
  for steps in (["xy", "z"], ["x" * 30]):
    s = steps_of(tokenizer, "abcdef", steps, max_length=60, max_prompt_length=4)
    assert text(tokenizer, s.ids[: s.prompt]) == "<s>def"
    assert len(s.marks) == len(steps)
  turns = (user("old"), assistant("older"), user("new"))
  t = steps_of(tokenizer, turns, ["s"], max_length=100, max_prompt_length=25)
  assert text(tokenizer, t.ids[: t.prompt]) == "<s>user:new</s>\n<s>assistant:"
  tokenizer, options = encoder_tokenizer(), dict(encoder=True, eos="none", pooling="first")
  for response in ("x", "wxyz"):
    s = one(tokenizer, "abcdef", response, max_length=60, max_prompt_length=2, **options)
    assert tokenizer.convert_ids_to_tokens(s.ids)[:4] == ["[CLS]", "e", "f", "[SEP]"]
    assert len(s.ids) == 4 + len(response) + 1
  s = one(tokenizer, "abcdef", "wxyz", max_length=8, max_prompt_length=2, **options)
  assert tokenizer.convert_ids_to_tokens(s.ids)[:3] == ["[CLS]", "f", "[SEP]"]


def test_a_prompts_own_limit_is_refused_below_zero_and_is_said():
  with pytest.raises(InputError, match="max_prompt_length is -1; expected tokens, or 0"):
    Convention(max_prompt_length=-1)
  assert Convention(max_length=64, max_prompt_length=48).limits == (
    "64 tokens, or their prompts than 48"
  )
  assert Convention(max_length=64).limits == "64 tokens"


def test_encoder_reads_cls_of_a_pair_encoding():
  tokenizer = encoder_tokenizer()
  s = one(tokenizer, "ab", "cd", encoder=True, eos="none", pooling="first")
  assert tokenizer.convert_ids_to_tokens(s.ids) == ["[CLS]", "a", "b", "[SEP]", "c", "d", "[SEP]"]
  assert s.token_type.tolist() == [0, 0, 0, 0, 1, 1, 1]
  assert s.marks.tolist() == [0]
  t = one(tokenizer, "abcd", "xy", encoder=True, eos="none", pooling="first", max_length=7)
  assert tokenizer.convert_ids_to_tokens(t.ids) == ["[CLS]", "c", "d", "[SEP]", "x", "y", "[SEP]"]
  u = one(tokenizer, "ab", "wxyz", encoder=True, eos="none", pooling="first", max_length=5)
  assert tokenizer.convert_ids_to_tokens(u.ids) == ["[CLS]", "[SEP]", "y", "z", "[SEP]"]


def test_messages_without_a_template_name_the_mend():
  encoder = TextEncoder(decoder_tokenizer(chat=None), Convention())
  with pytest.raises(ValueError, match=r"no chat template; set --config\.model\.chat_template"):
    encoder.sequences([((user("a"),), (assistant("b"),))])


def test_templates_without_a_default_are_one_error_and_no_fault_of_each_row():
  tokenizer = decoder_tokenizer(chat={"rag": CHAT, "tools": CHAT})
  encoder = TextEncoder(tokenizer, Convention())
  turns = (user("a"),), (assistant("b"),)
  found = r"templates 'rag', 'tools', none of them 'default'; set --config\.model\.chat_template to"
  with pytest.raises(InputError, match=found):
    encoder.sequences([turns])
  (strings,) = encoder.sequences([("a", "b")])
  assert text(tokenizer, strings.ids) == "<s>ab</s>"
  tokenizer.chat_template = {"rag": "x", "default": CHAT}
  assert one(tokenizer, *turns).ids.tolist() == one(decoder_tokenizer(), *turns).ids.tolist()


@pytest.mark.parametrize("limit", [2, 3])
def test_an_encoder_has_room_for_text_beside_its_special_tokens(limit):
  options = {"encoder": True, "eos": "none", "pooling": "first"}
  with pytest.raises(InputError, match=rf"max_length is {limit}, .* 3 special tokens .* 4 or more"):
    TextEncoder(encoder_tokenizer(), Convention(max_length=limit, **options))
  assert len(one(encoder_tokenizer(), "ab", "cd", max_length=4, **options).ids) == 4


def test_eos_without_an_eos_token_names_the_mend():
  tokenizer = decoder_tokenizer()
  tokenizer.eos_token = None
  with pytest.raises(ValueError, match=r"model\.eos"):
    TextEncoder(tokenizer, Convention(eos="append"))


@pytest.mark.parametrize("name", ["eos", "pooling"])
def test_unknown_convention_is_an_error(name):
  with pytest.raises(ValueError, match=f"convention.{name} is 'middle'"):
    Convention(**{name: "middle"})


def test_bad_rows_are_counted_with_their_reason_and_the_rest_kept():
  refuses_ab = (
    "{% for m in messages %}{% if 'ab' in m.content %}{{ raise_exception('no') }}{% endif %}"
    "x{{ m.content }}{% endfor %}"
  )
  encoder = TextEncoder(decoder_tokenizer(chat=refuses_ab), Convention())

  def pair(prompt, a, b, line):
    return Example(
      (user(prompt),), ((assistant(a),), (assistant(b),)), (1.0, 0.0), origin=f"f:{line}"
    )

  report = Report(rows=4)
  examples = [
    pair("p", "a", "b", 1),
    pair("p", "ab", "b", 2),
    pair("p", "\ud800", "b", 3),
    pair("q", "c", "d", 4),
  ]
  groups, kept = tokenise(examples, encoder, report)
  assert [e.origin for e in kept] == ["f:1", "f:4"]
  assert dict(report.dropped) == {"template_error": 1, "lone_surrogate": 1}
  assert report.kept == len(groups) == 2


def test_pairs_made_identical_by_the_cut_are_dropped_and_counted():
  encoder = TextEncoder(decoder_tokenizer(), Convention(max_length=6))
  report = Report(rows=2)
  same_end = Example("p", ("one long end", "two long end"), (1.0, 0.0), origin="f:1")
  fine = Example("p", ("ab", "cd"), (1.0, 0.0), origin="f:2")
  groups, _ = tokenise([same_end, fine], encoder, report)
  assert dict(report.dropped) == {"identical_after_tokenising": 1}
  assert len(groups) == 1


def test_common_prefix():
  assert common_prefix([np.array([1, 2, 3]), np.array([1, 2, 4]), np.array([1, 2])]) == 2
  assert common_prefix([np.array([1]), np.array([2])]) == 0


def steps_of(tokenizer, prompt, steps, **options):
  return TextEncoder(tokenizer, Convention(**options)).step_sequence(prompt, steps)


def test_every_step_is_read_at_the_same_token_before_any_eos():
  # 'ab', and a full stop with a line's end, merge where they are tokenised as one text.
  tokenizer = decoder_tokenizer(merges=[("a", "b"), (".", "Ċ")])
  s = steps_of(tokenizer, "q: ", ["ab.", "b", "c."])
  assert text(tokenizer, s.ids) == "<s>q: ab.\nb\nc.\n</s>"
  newline = tokenizer("\n", add_special_tokens=False).input_ids
  assert len(newline) == 1
  assert s.ids[s.marks].tolist() == newline * 3
  assert [text(tokenizer, s.ids[: m + 1]) for m in s.marks] == [
    "<s>q: ab.\n",
    "<s>q: ab.\nb\n",
    "<s>q: ab.\nb\nc.\n",
  ]
  assert text(tokenizer, s.ids[: s.prompt]) == "<s>q: "


def test_steps_follow_a_templates_opening():
  tokenizer = decoder_tokenizer()
  s = steps_of(tokenizer, (user("q"),), ["one", "two"], separator="#")
  assert text(tokenizer, s.ids) == "<s>user:q</s>\n<s>assistant:one#two#</s>"
  assert text(tokenizer, s.ids[: s.prompt]) == "<s>user:q</s>\n<s>assistant:"


def test_steps_that_do_not_fit_cost_the_prompt_and_never_a_label():
  tokenizer = decoder_tokenizer()
  s = steps_of(tokenizer, "abcdef", ["xy", "z"], max_length=9)
  assert text(tokenizer, s.ids) == "<s>efxy\nz\n</s>"
  assert (s.prompt, s.cut, len(s.marks)) == (3, 4, 2)
  assert text(tokenizer, s.ids[: s.marks[0] + 1]) == "<s>efxy\n"
  error = steps_of(tokenizer, "abcdef", ["xy", "z"], max_length=6)
  assert isinstance(error, RowError)
  assert error.reason == "steps_too_long"
  turns = (user("old"), assistant("older"), user("new"))
  t = steps_of(tokenizer, turns, ["s"], max_length=len("UuserR:newXNSassistant:sNE") - 1)
  assert "old" not in text(tokenizer, t.ids)
  assert text(tokenizer, t.ids).endswith("<s>assistant:s\n</s>")


def averaged(tokenizer, s):
  """The text of each mean, from its first token to its mark."""
  spans = zip(s.starts, s.marks, strict=True)
  return [text(tokenizer, s.ids[start : mark + 1]) for start, mark in spans]


def test_a_mean_is_over_the_responses_own_tokens():
  tokenizer = decoder_tokenizer(merges=[("b", "c")])
  assert averaged(tokenizer, one(tokenizer, "ab", "xy", pooling="mean")) == ["xy</s>"]
  assert averaged(tokenizer, one(tokenizer, "ab", "xy", pooling="mean", eos="none")) == ["xy"]
  # What merges over the border is the response's; what of the prompt is cut is not.
  assert averaged(tokenizer, one(tokenizer, "ab", "cd", pooling="mean")) == ["bcd</s>"]
  cut = one(tokenizer, "abababab", "xy", pooling="mean", max_length=6)
  assert averaged(tokenizer, cut) == ["xy</s>"]
  long = one(tokenizer, "ab", "vwxyz", pooling="mean", max_length=4)
  assert averaged(tokenizer, long) == ["yz</s>"]
  assert averaged(tokenizer, one(tokenizer, "ab", "", pooling="mean", eos="none")) == ["b"]
  assert one(tokenizer, "ab", "xy").starts is None
  bert = encoder_tokenizer()
  options = dict(encoder=True, eos="none", pooling="mean")
  assert averaged(bert, one(bert, "ab", "cd", **options)) == ["cd[SEP]"]
  assert averaged(bert, one(bert, "ab", "wxyz", max_length=5, **options)) == ["yz[SEP]"]
  steps = steps_of(decoder_tokenizer(), "q: ", ["ab.", "b", "c."], pooling="mean")
  assert averaged(decoder_tokenizer(), steps) == ["ab.\n", "b\n", "c.\n"]


def test_an_encoder_reads_no_steps():
  convention = Convention(encoder=True, eos="none", pooling="first")
  with pytest.raises(ValueError, match="decoder"):
    TextEncoder(encoder_tokenizer(), convention).step_sequence("p", ["s"])


def test_groups_of_every_kind():
  encoder = TextEncoder(decoder_tokenizer(), Convention())
  examples = [
    Example("p", ("a", "b", "c"), (2.0, 1.0, 1.0), "ranking"),
    Example("p", ("a\nb",), (1.0, 0.0), "step", steps=(("a", "b"),)),
    Example("p", ("ab", "c"), (0.5, 0.5), "ranking", pairs=((0, 1), (1, 0)), ties=((0, 2), (2, 0))),
  ]
  ranking, steps, compared = tokenise(examples, encoder, Report())[0]
  pairs, ties = ranking.comparisons()
  assert pairs.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
  assert ties.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
  assert steps.response.tolist() == [0, 0]
  assert steps.length.tolist() == [5, 5]  # a, line's end, b, line's end, EOS
  assert steps.marks.tolist() == [len("Spa"), len("Spa.b")]
  assert compared.comparisons()[0].tolist() == [[0, 1], [1, 0]]
  assert compared.comparisons()[1].tolist() == [[0, 2], [2, 0]]
  assert compared.length.tolist() == [3, 2]


def test_a_tokenizer_that_appends_eos_itself_gives_the_same_ids():
  plain, own = decoder_tokenizer(), decoder_tokenizer()
  own.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
  )
  assert own("ab").input_ids == [*plain("ab").input_ids, EOS]
  want, got = (one(t, "ab", "cd") for t in (plain, own))
  assert text(own, got.ids) == "<s>abcd</s>"
  np.testing.assert_array_equal(got.ids, want.ids)
  assert (got.prompt, got.marks.tolist()) == (want.prompt, want.marks.tolist())
  # Nor does one stand between the first step and its mark.
  want, got = (TextEncoder(t, Convention()).step_sequence("ab", ("cd", "ef")) for t in (plain, own))
  np.testing.assert_array_equal(got.ids, want.ids)
  assert (got.prompt, got.marks.tolist()) == (want.prompt, want.marks.tolist())


def both_forms(tokenizer, **convention):
  """A conversation's ids by the chat template, and those of its text given as two strings."""
  turns = (user("Is it Über 3 < 5?"), assistant("Yes."), user("Why?"))
  encoder = TextEncoder(tokenizer, Convention(**convention))
  prompt, whole = encoder.render(turns, generation=True), encoder.render((*turns, assistant("So.")))
  pairs = [(turns, (assistant("So."),)), (prompt, whole[len(prompt) :])]
  messages, strings = encoder.sequences(pairs)
  return messages, strings


REAL = {
  "SmolLM2": "HuggingFaceTB/SmolLM2-135M-Instruct",
  "TinyStories": Path(__file__).parents[3] / "shared/weights/tinystories-llama-260k",
  "MiniLM": "sentence-transformers/all-MiniLM-L6-v2",
}


def real(name, monkeypatch):
  """The tokenizer of a published model; skips where it cannot be had."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  try:
    return load_tokenizer(REAL[name])
  except (FileNotFoundError, ValueError) as error:
    pytest.skip(f"{name} is not here: {error}")


@pytest.mark.parametrize("name", ["bytes", "bytes, no BOS", "world", "SmolLM2", "TinyStories"])
def test_messages_and_strings_have_the_same_ids(name, monkeypatch):
  made = {
    "bytes": decoder_tokenizer,
    "bytes, no BOS": lambda: decoder_tokenizer(bos=False),
    "world": make_tokenizer,
  }
  tokenizer = made[name]() if name in made else real(name, monkeypatch)
  tokenizer.chat_template = HH_TEMPLATE
  messages, strings = both_forms(tokenizer)
  np.testing.assert_array_equal(messages.ids, strings.ids)
  assert messages.prompt == strings.prompt
  adds_bos = name in ("bytes", "TinyStories")
  assert ((messages.ids == tokenizer.bos_token_id).sum() == 1) == adds_bos
  assert (messages.ids == tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize("name", ["bytes", "MiniLM"])
def test_an_encoders_pair_is_the_same_in_both_forms(name, monkeypatch):
  tokenizer = encoder_tokenizer() if name == "bytes" else real(name, monkeypatch)
  tokenizer.chat_template = HH_TEMPLATE
  messages, strings = both_forms(tokenizer, encoder=True, eos="none", pooling="first")
  np.testing.assert_array_equal(messages.ids, strings.ids)
  np.testing.assert_array_equal(messages.token_type, strings.token_type)
  assert (messages.ids == tokenizer.cls_token_id).sum() == 1


def test_bos_is_the_templates_where_the_record_says_nothing_of_it():
  tokenizer = decoder_tokenizer(chat=HH_TEMPLATE)
  before, strings = both_forms(tokenizer, bos="template")
  np.testing.assert_array_equal(before.ids, strings.ids[1:])
  # A template's own BOS is not doubled.
  own = decoder_tokenizer()
  assert one(own, (user("hi"),), (assistant("yo"),)).ids.tolist()[:2] == [
    BOS,
    own("u").input_ids[1],
  ]


def test_bos_stays_where_messages_are_cut_and_before_steps():
  tokenizer = decoder_tokenizer(chat=HH_TEMPLATE)
  turns = (user("old"), assistant("older"), user("new"))
  full = one(tokenizer, turns, (assistant("end"),))
  cut = one(tokenizer, turns, (assistant("end"),), max_length=len(full.ids) - 1)
  assert text(tokenizer, cut.ids) == "<s>\n\nHuman: new\n\nAssistant: end</s>"
  tokens = one(tokenizer, turns, (assistant("end"),), max_length=len(cut.ids) - 2)
  assert tokens.ids[0] == BOS
  assert text(tokenizer, tokens.ids).endswith("w\n\nAssistant: end</s>")
  steps = steps_of(tokenizer, (user("q"),), ["a", "b"])
  assert text(tokenizer, steps.ids) == "<s>\n\nHuman: q\n\nAssistant:a\nb\n</s>"
