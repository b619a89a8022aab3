"""Tokenizers written into GGUF files as llama.cpp's converter writes them, and one real file."""

import hashlib
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys

import huggingface_hub
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rm_jax.pretrained import gguf
from tests.pretrained import test_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

# The tokenizers below stand for the originals; their pre-tokenizers are as published in the
# tokenizer.json of SmolLM2, GPT-2, Llama 3 and Qwen2.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern):
  return [
    pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]


ORIGINALS = {
  "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "llama-bpe": split(CONTRACTIONS + r"\p{N}{1,3}" + REST),
  "qwen2": split(CONTRACTIONS + r"\p{N}" + REST),
}
TRAINING = ["the theory, then 1234 thousand 123 12 hello's HE'LL\n\n  def f(x):\n    return é"] * 3
PIECES = [
  "the",
  " theory",
  "12",
  "345",
  "'s",
  "'LL",
  "  ",
  "\n",
  "\t",
  "é",
  "e\u0301",
  "日本",
  "😀",
]
PIECES += [
  "(",
  "):",
  "\x00",
  "\u00a0",
  "²",
  "٣",
  "<|end|>",
  "<|tool|>",
  "<think>",
  "<|end",
  "[PAD293]",
]


def texts():
  rng = random.Random(0)
  return ["".join(rng.choices(PIECES, k=rng.randint(0, 20))) for _ in range(400)]


def trained(pre):
  original = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
  original.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
  original.decoder = decoders.ByteLevel()
  if pre == "qwen2":
    original.normalizer = normalizers.NFC()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  original.train_from_iterator(TRAINING, trainer)
  original.add_special_tokens(
    [
      tokenizers.AddedToken(text, normalized=False, special=True)
      for text in ("<|end|>", "<|tool|>")
    ]
  )
  original.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
  return original


def tokenizer_keys(original, pre, **more):
  vocab = sorted(original.get_vocab().items(), key=lambda item: item[1])
  tokens = [token for token, _ in vocab] + [f"[PAD{len(vocab)}]"]
  special = {"<|end|>": CONTROL, "<|tool|>": CONTROL, "<think>": USER_DEFINED}
  special[tokens[-1]] = USER_DEFINED
  merges = json.loads(original.to_str())["model"]["merges"]
  keys = {
    "model": "gpt2",
    "pre": pre,
    "tokens": tokens,
    "token_type": [special.get(token, NORMAL) for token in tokens],
    "merges": [" ".join(merge) for merge in merges],
    "bos_token_id": original.token_to_id("<|end|>"),
    "eos_token_id": original.token_to_id("<|end|>"),
  }
  keys = {**keys, **more}
  return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def read(path, model_type, keys):
  return gguf.tokenizer(test_gguf.write(path / "tokenizer.gguf", model_type, keys))


@pytest.mark.parametrize("pre", ORIGINALS)
def test_ids_are_the_originals(tmp_path, pre):
  original = trained(pre)
  ours = read(tmp_path, "llama", tokenizer_keys(original, pre, add_bos_token=False))
  for text in texts():
    ids = original.encode(text).ids
    assert ours(text)["input_ids"] == ids, repr(text)
    assert ours.decode(ids, skip_special_tokens=False) == original.decode(ids, False)
  # One row more than pieces, which no text gives; its name is [PAD293].
  assert len(ours) == original.get_vocab_size() + 1 == 294


@pytest.mark.parametrize(
  ("pre", "text", "pieces"),
  [
    ("gpt-2", "a's 123  B\n\n", ["a", "'s", " 123", " ", " B", "\n\n"]),
    ("smollm", "a's 123  B\n\n", ["a", "'s", " ", "1", "2", "3", " ", " B", "\n\n"]),
    ("starcoder", "x²", ["x", "²"]),
    ("llama-bpe", "A'S 1234  B)\n\n", ["A", "'S", " ", "123", "4", " ", " B", ")\n\n"]),
    ("qwen2", "A'S 12  B)\n\n", ["A", "'S", " ", "1", "2", " ", " B", ")\n\n"]),
  ],
)
def test_how_text_is_split(tmp_path, pre, text, pieces):
  ours = read(tmp_path, "llama", tokenizer_keys(trained("gpt-2"), pre))
  found = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
  decoder = decoders.ByteLevel()
  assert [decoder.decode([piece]) for piece, _ in found] == pieces


def test_a_llama_3_piece_that_is_a_token_is_taken_whole(tmp_path):
  original = trained("llama-bpe")
  original.add_tokens([tokenizers.AddedToken("zq")])
  keys = tokenizer_keys(original, "llama-bpe", add_bos_token=False)
  whole = original.token_to_id("zq")  # a token that no merge makes
  assert read(tmp_path, "llama", keys)("zq")["input_ids"] == [whole]
  keys["tokenizer.ggml.pre"] = "gpt-2"
  assert len(read(tmp_path, "llama", keys)("zq")["input_ids"]) == 2


def test_special_tokens(tmp_path):
  original = trained("smollm")
  template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
  keys = tokenizer_keys(original, "smollm") | {"tokenizer.chat_template": template}
  keys["llama.context_length"] = 77
  ours = read(tmp_path, "llama", keys)
  end, think = original.token_to_id("<|end|>"), original.token_to_id("<think>")
  assert ours("<|end|><think>")["input_ids"] == [end, think]
  assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|end|>", "<|end|>", None)
  # What the file calls user-defined is no special token: it stays when those are skipped.
  assert ours.decode([end, think, end], skip_special_tokens=True) == "<think>"
  assert ours.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
    "user:Hi<|end|>"
  )
  assert ours.model_max_length == 77
  ours.save_pretrained(tmp_path / "saved")
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
  assert [again(text)["input_ids"] for text in texts()] == [
    ours(text)["input_ids"] for text in texts()
  ]
  assert again.chat_template == template


@pytest.mark.parametrize(
  ("pre", "flags", "bos", "eos"),
  [
    ("smollm", {}, 0, 0),
    ("llama-bpe", {}, 1, 0),
    ("llama-bpe", {"add_bos_token": False}, 0, 0),
    ("smollm", {"add_bos_token": True, "add_eos_token": True}, 1, 1),
  ],
)
def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path, pre, flags, bos, eos):
  original = trained(pre)
  ours = read(tmp_path, "llama", tokenizer_keys(original, pre, **flags))
  end = original.token_to_id("<|end|>")
  a, b = (original.encode(text).ids for text in ("the", "theory"))
  single = [end] * bos + a + [end] * eos
  assert ours("the")["input_ids"] == single
  assert ours("the", "theory")["input_ids"] == single + [end] * bos + b + [end] * eos
  assert ours("the", add_special_tokens=False)["input_ids"] == a


def sentencepiece(**more):
  """A vocabulary in which an earlier union has a better score."""
  pieces = ["▁", "a", "b", "c", "n", "▁a", "an", "ab", "ana", "ban", "▁ban", "bana", "na", "▁b"]
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
  keys = {
    "model": "llama",
    "tokens": tokens,
    "token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)],
    "scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
  }
  keys = {**keys, **more}
  return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def by_scores(text, keys):
  """Sentencepiece's rule: join the neighbours whose union scores best; of equals, the leftmost."""
  tokens = keys["tokenizer.ggml.tokens"]
  scores = dict(zip(tokens, keys["tokenizer.ggml.scores"], strict=True))
  pieces = list("▁" + text.replace(" ", "▁"))
  while True:
    unions = [a + b for a, b in itertools.pairwise(pieces)]
    known = [(-scores[union], i) for i, union in enumerate(unions) if union in scores]
    if not known:
      break
    _, i = min(known)
    pieces[i : i + 2] = [unions[i]]
  ids = []
  for piece in pieces:
    known = piece in scores
    ids += [tokens.index(piece)] if known else [3 + byte for byte in piece.encode()]
  return [1, *ids]


def test_sentencepiece(tmp_path):
  keys = sentencepiece()
  ours = read(tmp_path, "llama", keys)
  rng = random.Random(0)
  for _ in range(300):
    text = "".join(rng.choices("aaabbnnc  é\n", k=rng.randint(1, 12)))
    assert ours(text)["input_ids"] == by_scores(text, keys), repr(text)
    assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True) == text
  assert ours("</s>a")["input_ids"][:2] == [1, 2]
  without = read(tmp_path, "llama", sentencepiece(add_space_prefix=False, add_bos_token=False))
  assert without.convert_ids_to_tokens(without("a b")["input_ids"]) == ["a", "▁b"]


def test_what_is_not_known_is_an_error(tmp_path):
  keys = tokenizer_keys(trained("gpt-2"), "gpt-2")
  for pre in ("poro-chat", None):
    changed = {key: v for key, v in keys.items() if key != "tokenizer.ggml.pre"}
    changed |= {"tokenizer.ggml.pre": pre} if pre else {}
    with pytest.raises(ValueError, match=rf"tokenizer\.ggml\.pre is {pre!r}.*'smollm'"):
      read(tmp_path, "llama", changed)
  with pytest.raises(ValueError, match="'llama' in a 'gemma'; we read"):
    read(tmp_path, "gemma", sentencepiece())
  with pytest.raises(ValueError, match="'bert' in a 'bert'"):
    read(tmp_path, "bert", {"tokenizer.ggml.model": "bert"})
  with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
    gguf.tokenizer(tmp_path / "none.gguf")


def test_all_contradictions_are_one_error(tmp_path):
  keys = tokenizer_keys(trained("gpt-2"), "gpt-2", bos_token_id=None, add_bos_token=True)
  tokens = keys["tokenizer.ggml.tokens"]
  keys["tokenizer.ggml.tokens"] = [*tokens, tokens[0]]
  keys["tokenizer.ggml.merges"] = ["zz yy", "alone"]
  keys["tokenizer.ggml.padding_token_id"] = 5000
  with pytest.raises(ValueError, match=r"tokenizer\.gguf") as error:
    read(tmp_path, "llama", keys)
  for part in (
    f"tokenizer.ggml.token_type has {len(tokens)} entries",
    f"token {tokens[0]!r} is {len(tokens)} and 0",
    "merge 'zz yy' does not make a token of two",
    "merge 'alone' does not make a token of two",
    "pad_token_id is 5000",
    "add_bos_token is true, and there is no bos_token_id",
  ):
    assert part in str(error.value)
  with pytest.raises(ValueError, match=r"tokenizer\.ggml\.scores has 0 entries"):
    read(tmp_path, "llama", sentencepiece(scores=None))


@pytest.mark.slow
def test_nothing_here_imports_torch(tmp_path):
  path = test_gguf.write(tmp_path / "t.gguf", "llama", tokenizer_keys(trained("smollm"), "smollm"))
  code = (
    "import sys; from rm_jax.pretrained import files, gguf;"
    f" assert len(gguf.tokenizer({str(path)!r})('the')['input_ids']); print('torch' in sys.modules)"
  )
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "False"


# By the tokenizer.json that HuggingFaceTB publishes with SmolLM2-135M-Instruct.
SMOLLM2 = {
  "Hello world 123": [19556, 905, 216, 33, 34, 35],
  "I'm  you'll\n\n\tdef f(x):\n    return 42": (
    [57, 5248, 216, 346, 3060, 1116, 197, 1604, 275, 24, 104, 727, 472, 1003, 216, 36, 34]
  ),
  "日本語 😀 e\u0301 ½": [23274, 115, 40993, 179, 120, 248, 40303, 218, 297, 151, 219, 216, 16738],
  "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
  " \r\n\u00a0\x00 ٣": [216, 2738, 15442, 190, 216, 164, 113],
  "<repo_name>a<|endoftext|>": [3, 81, 0],
}


@pytest.mark.slow
def test_real_file(monkeypatch):
  ours = gguf.tokenizer(test_gguf.smollm2(monkeypatch))
  for text, ids in SMOLLM2.items():
    assert ours(text)["input_ids"] == ids, text
  assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)
  chat = ours.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
  assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


# Of the tokenizer.json in HuggingFaceTB/SmolLM2-135M-Instruct, revision 12fd25f7.
PUBLISHED = "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"


def published_tokenizer():
  """The file as published: of $RM_JAX_SMOLLM2_TOKENIZER, or of the hub's cache; else a skip."""
  given = os.environ.get("RM_JAX_SMOLLM2_TOKENIZER")
  path = given or huggingface_hub.try_to_load_from_cache(
    "HuggingFaceTB/SmolLM2-135M-Instruct", "tokenizer.json"
  )
  if not isinstance(path, str):
    pytest.skip("needs SmolLM2's tokenizer.json: set RM_JAX_SMOLLM2_TOKENIZER to its path")
  assert hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() == PUBLISHED, path
  return tokenizers.Tokenizer.from_file(path)


def hard_texts():
  """Digits, runs of white space, emoji, special tokens, every script, code, and mixtures."""
  rng = random.Random(1)
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
  white = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\x0b", "\x85"]
  emoji = ["😀", "👩‍👩‍👧", "🇳🇴", "👍🏽", "❤️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f"]
  words = "the Theory HELLO it's we'LL don't naïve straße Ångström x_1 foo() != -> 日本語 русский"
  words = [*words.split(), *PIECES, "العربية", "हिन्दी", "한국어", "ไทย", "עברית", "ﬁ", "Ⅷ", "½"]

  def number():
    digits = "".join(rng.choices("0123456789", k=rng.randint(1, 12)))
    return rng.choice([digits, f"-{digits}.{digits}", f"{digits},000", f"0x{digits}", f"{digits}%"])

  def point():  # any character that can be encoded
    while 0xD800 <= (code := rng.randrange(rng.choice([0x80, 0x800, 0x10000, 0x110000]))) < 0xE000:
      pass
    return chr(code)

  draws = [
    number,
    point,
    lambda: rng.choice(special),
    lambda: rng.choice(white) * rng.randint(1, 9),
    lambda: rng.choice(emoji),
    lambda: rng.choice(words),
  ]
  for make in draws:  # each by itself, then all together
    yield from ("".join(make() for _ in range(rng.randint(1, 12))) for _ in range(300))
  for _ in range(3000):
    yield "".join(rng.choice(draws)() for _ in range(rng.randint(1, 40)))


def test_real_file_against_the_published_tokenizer(monkeypatch):
  published = published_tokenizer()
  ours = gguf.tokenizer(test_gguf.smollm2(monkeypatch))
  texts = list(hard_texts())
  differing = [t for t in texts if ours(t)["input_ids"] != published.encode(t).ids]
  print(f"{len(texts)} texts, {len(differing)} differ")
  assert len(set(texts)) >= 4000
  assert not differing, differing[:3]
