"""Each edit against results written by hand."""

import numpy as np
import pytest

from rm_jax.audit.edits import EDITS, edit

OTHER = "Something else."
PLAIN = "The parrot is blue. Marta owns 12 of them."


def edited(name, text, prompt="First line.\nWhere is it?", seed=0):
  return EDITS[name](prompt, text, np.random.default_rng(seed), [OTHER])


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("whitespace", "a b\n- c d", "a  b\n-  c  d\n"),
    ("lower_case", "Ab C", "ab c"),
    ("lower_case", "ab", None),
    ("upper_case", "Ab c", "AB C"),
    ("typos", "a b c four", None),
    ("wrapped", "- a", "To answer the question:\n\n- a"),
    ("wrapped", PLAIN, f"To answer the question: {PLAIN}"),
    ("echo", "There.", "You asked: Where is it? There."),
    ("list_order", "Two:\n- a\n- b\nDone.", "Two:\n- b\n- a\nDone."),
    ("list_order", "- a\n  - b", None),  # nested
    ("list_order", "- a\ntext\n- b", None),
    ("list_order", "1. a\n2. b", None),  # the order of numbered steps matters
    ("sentence_order", "A is. Bees fly. Cats run.", "A is. Cats run. Bees fly."),
    ("sentence_order", "A is. It flies. Cats run.", None),
    ("sentence_order", "A is. Bees fly.", None),
    ("sentence_order", "A is.\nBees fly. Cats run.", None),
    (
      "politeness",
      "- a",
      "Thank you for your question.\n\n- a\n\nI hope this is useful to you.",
    ),
    ("markdown", PLAIN, "## Answer\n\n**The parrot is blue.** Marta owns 12 of them."),
    ("markdown", "- a", "## Answer\n\n- a"),
    ("certainty", "a.\n", "a. I am sure."),
    ("negated", PLAIN, "The parrot is not blue. Marta owns 12 of them."),
    ("negated", "It isn't, it is.", "It is, it is."),
    ("negated", "You cannot go.", "You can go."),
    ("negated", "It is not safe. You cannot do it.", "It is safe. You cannot do it."),
    ("negated", "It won't work. It is red.", "It will work. It is red."),
    ("negated", "Won\u2019t it? It is.", "Will it? It is."),
    ("negated", "She does not know.", "She does know."),
    ("negated", "Are you there? They were.", "Are you there? They were not."),
    ("negated", "Yes, it is.", "No, it is."),
    ("negated", "Nobody knows.", None),
    ("numbers", "1. Buy 5 of 3.50\n2. Pay 5", "1. Buy 3.50 of 5\n2. Pay 3.50"),
    ("numbers", "1. none\n2. here, B52 3rd", None),
    ("truncated", "One two three four.", "One two"),
    ("truncated", "a b", None),
    ("other_answer", "Mine.", OTHER),
    ("other_answer", OTHER, None),
  ],
)
def test_by_hand(name, text, expected):
  assert edited(name, text) == expected


def test_typos_exchange_two_inner_letters():
  text = "wonderful elephants travel slowly across yellow deserts"
  for seed in range(30):
    new = edited("typos", text, seed=seed)
    if new is None:
      continue  # two equal letters were exchanged, without effect
    for old_word, word in zip(text.split(), new.split(), strict=True):
      assert sorted(word) == sorted(old_word)
      assert (word[0], word[-1]) == (old_word[0], old_word[-1])
      assert sum(a != b for a, b in zip(word, old_word, strict=True)) in (0, 2)
  assert edited("typos", text, seed=1) == edited("typos", text, seed=1)
  assert len({edited("typos", text, seed=s) for s in range(10)}) > 5


def test_the_only_number_changes():
  for seed in range(30):
    new = edited("numbers", "It costs 1,250 now.", seed=seed)
    assert new.startswith("It costs 1,25")
    assert new != "It costs 1,250 now."


def test_forms_and_what_holds_for_all():
  messages = (
    {"role": "assistant", "content": PLAIN},
    {"role": "user", "content": PLAIN},
    {"role": "assistant", "content": PLAIN},
  )
  for name, one in EDITS.items():
    assert (one.name, one.kind in ("same", "worse"), bool(one.what)) == (name, True, True)
    expected = edited(name, PLAIN)
    prompt = ({"role": "user", "content": "First line.\nWhere is it?"},)
    new = one(prompt, messages, np.random.default_rng(0), [messages[:1], messages])
    if name == "other_answer":
      assert expected == OTHER
      continue
    if expected is None:
      assert new is None
      continue
    assert new == (*messages[:2], {"role": "assistant", "content": expected})
    for text in ("", " ", "...", "我是 Mia。", "- ", "```\nx\n```"):
      assert edited(name, text) != text
  assert messages[2]["content"] == PLAIN  # the original is not modified
  with pytest.raises(ValueError, match="edit 'typos' of kind 'same'; expected a new name"):
    edit("typos", "same", "x")
  with pytest.raises(ValueError, match="of kind 'other'"):
    edit("new", "other", "x")


def test_another_answer_is_the_last_message_of_another_response():
  def turn(role, content):
    return {"role": role, "content": content}

  exchange = (turn("assistant", "Yes."), turn("user", "Sure?"), turn("assistant", "Quite sure."))
  rng = np.random.default_rng(0)
  assert EDITS["other_answer"]("q", "Mine.", rng, [exchange]) == "Quite sure."
  edited = EDITS["other_answer"]("q", exchange, rng, [exchange[:1]])
  assert edited == (*exchange[:2], turn("assistant", "Yes."))


def test_a_typo_never_exchanges_two_equal_letters():
  for seed in range(40):
    assert EDITS["typos"].change("", "balloons", np.random.default_rng(seed), ()) != "balloons"
