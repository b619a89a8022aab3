"""The tokenizer in a GGUF file, built with `tokenizers`; it gives the original tokenizer's ids.

transformers builds one too, but only where torch is installed, and without the normaliser, the
`ignore_merges` and the rule for digits that some tokenizers need, so that its ids differ.
"""

import dataclasses
from math import isfinite
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rm_jax.errors import InputError
from rm_jax.pretrained import gguf_file


@dataclasses.dataclass(frozen=True)
class _Pre:
  """How text is cut before byte-pair merging, for one `tokenizer.ggml.pre`."""

  split: str | None = None  # None: GPT-2's rule, which `ByteLevel` holds
  digits: bool = False  # each digit alone, before GPT-2's rule
  nfc: bool = False  # normalised first, as the original does (llama.cpp does not)
  whole: bool = False  # a piece of the cut text that is a token becomes it, whatever the merges are
  bos: bool = False  # BOS is added unless the file says otherwise


_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = _Pre(digits=True)
_LLAMA3 = _Pre(_WORDS % "{1,3}", whole=True, bos=True)
# Only rules whose ids were compared with the original's: a wrong rule gives wrong ids silently.
_PRE = {
  "gpt-2": _Pre(),
  "smollm": _DIGITS,
  "starcoder": _DIGITS,
  "refact": _DIGITS,
  "llama-bpe": _LLAMA3,
  "llama-v3": _LLAMA3,
  "llama3": _LLAMA3,
  "qwen2": _Pre(_WORDS % "", nfc=True),
}

# Values of the key tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4
# The most characters of a token. `_sentencepiece` cuts a token in two at each character, so that a
# token of a million characters would take all time and memory. Real tokens have a few hundred at
# most.
_LONGEST = 1024
_MOST_LISTED = 20  # problems in a message


def build(file: gguf_file.File, path: str) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer of an open GGUF file; see `rm_jax.pretrained.gguf.tokenizer`.

  Args:
    file: open.
    path: of the file, for messages.

  Returns:
    The tokenizer, with its special tokens and chat template.

  Raises:
    InputError: a kind of tokenizer or a rule of splitting that we do not know, or keys missing, of
      another type or contradictory (all of them in one message).
  """
  wrong: list[str] = []

  def get(key: str, of: type, default: Any = None) -> Any:
    """A key's value, of type `of` or, where the default is a list, a list of such values.

    The default where it is missing, or of another type, which is then noted in `wrong`.
    """
    if key not in file:
      return default
    value, many = file.get(key), isinstance(default, list)
    found = value if many and isinstance(value, list) else [value]
    bad = [one for one in found if type(one) is not of][:1]
    if bad or many != isinstance(value, list):
      said = f"a list of {of.__name__}" if many else of.__name__
      wrong.append(f"{key} has {str(bad or value)[:80]!r}, expected {said}")
      return default
    return value

  kind, architecture = get("tokenizer.ggml.model", str), get("general.architecture", str)
  pre = get("tokenizer.ggml.pre", str)
  # Gemma and Phi-3 treat spaces in ways of their own, which their files do not say.
  if kind != "gpt2" and (kind, architecture) != ("llama", "llama"):
    raise InputError(
      f"{path}: tokenizer.ggml.model is {kind!r:.80} in a {architecture!r:.80}; we read 'gpt2'"
      " (byte-level BPE), and 'llama' (sentencepiece) in a 'llama'. Use the model's own"
      " tokenizer.json."
    )
  if kind == "gpt2" and pre not in _PRE:
    raise InputError(
      f"{path}: tokenizer.ggml.pre is {pre!r:.80}, so how text is split is not known; we know"
      f" {sorted(_PRE)}. Use the model's own tokenizer.json, or convert it with a newer llama.cpp."
    )
  tokens = get("tokenizer.ggml.tokens", str, [])
  types = get("tokenizer.ggml.token_type", int, [])
  scores = get("tokenizer.ggml.scores", float, []) if kind == "llama" else [0.0] * len(tokens)
  merges = get("tokenizer.ggml.merges", str, []) if kind == "gpt2" else []
  pairs = [tuple(merge.split(" ", 1)) for merge in merges]
  special = {
    name: get(f"tokenizer.ggml.{key}_token_id", int)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
  }
  adds = {
    "bos": get("tokenizer.ggml.add_bos_token", bool, kind == "llama" or _PRE[pre].bos),
    "eos": get("tokenizer.ggml.add_eos_token", bool, False),
  }
  space = get("tokenizer.ggml.add_space_prefix", bool, True)
  options = {
    "model_max_length": get(f"{architecture}.context_length", int),
    "chat_template": get("tokenizer.chat_template", str),
  }
  if problems := wrong + _problems(kind, tokens, types, scores, pairs, special, adds):
    listed = "\n  ".join(problems[:_MOST_LISTED])
    more = len(problems) - _MOST_LISTED
    raise InputError(
      f"{path}: its {len(tokens)} tokens and what is said of them do not fit:\n  {listed}\n"
      + (f"  and {more} more\n" if more > 0 else "")
      + "Use the model's own tokenizer.json, or convert it again with a newer llama.cpp."
    )
  vocab = {token: i for i, token in enumerate(tokens)}
  names = {name: tokens[i] for name, i in special.items() if i is not None}
  if kind == "gpt2":
    backend = _byte_level(vocab, pairs, _PRE[pre])
  else:
    backend = _sentencepiece(vocab, dict(zip(tokens, scores, strict=True)), names.get("unk"), space)
  _add(backend, tokens, types)
  if any(adds.values()):
    backend.post_processor = _template(names, special, adds)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    clean_up_tokenization_spaces=False,
    **options,
    **{f"{name}_token": token for name, token in names.items()},
  )


def _problems(
  kind: str,
  tokens: list[str],
  types: list[int],
  scores: list[float],
  pairs: list[tuple[str, ...]],
  special: dict[str, int | None],
  adds: dict[str, bool],
) -> list[str]:
  """What is missing in a file's tokenizer, or contradicts the rest of it."""
  vocab = {token: i for i, token in enumerate(tokens)}
  problems = [
    f"tokenizer.ggml.{key} has {len(value)} entries"
    for key, value, bad in (
      ("tokens", tokens, not tokens),
      ("token_type", types, len(types) != len(tokens)),
      ("scores", scores, len(scores) != len(tokens)),
      ("merges", pairs, kind == "gpt2" and not pairs),
    )
    if bad
  ]
  problems += [f"token {t!r} is {vocab[t]} and {i}" for i, t in enumerate(tokens) if vocab[t] != i]
  problems += [
    f"token {i} has {len(token)} characters; expected at most {_LONGEST}"
    for i, token in enumerate(tokens)
    if len(token) > _LONGEST
  ]
  problems += [f"the score of token {i} is {s}" for i, s in enumerate(scores) if not isfinite(s)]
  problems += [
    f"merge {' '.join(pair)!r} does not make a token of two"
    for pair in pairs
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys()
  ]
  problems += [
    f"{name}_token_id is {i}"
    for name, i in special.items()
    if i is not None and not 0 <= i < len(tokens)
  ]
  problems += [
    f"add_{name}_token is true, and there is no {name}_token_id"
    for name, add in adds.items()
    if add and special[name] is None
  ]
  return problems


def _byte_level(vocab: dict[str, int], merges: list[tuple], pre: _Pre) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.whole))
  if pre.nfc:
    backend.normalizer = normalizers.NFC()
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None)]
  if pre.split is not None:
    steps.insert(0, pre_tokenizers.Split(tokenizers.Regex(pre.split), "isolated"))
  if pre.digits:
    steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(
  vocab: dict[str, int], scores: dict[str, float], unk: str | None, space: bool
) -> tokenizers.Tokenizer:
  # Sentencepiece repeatedly joins the two neighbours whose union has the best score. The same is
  # done by byte-pair merges of all pairs of tokens whose union is a token, ordered by its score,
  # highest first, and then by the ids of the pair.
  cuts = ((token[:i], token[i:]) for token in vocab for i in range(1, len(token)))
  merges = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
  merges.sort(key=lambda pair: (-scores["".join(pair)], vocab[pair[0]], vocab[pair[1]]))
  backend = tokenizers.Tokenizer(
    models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
  )
  steps = [normalizers.Replace(" ", "▁")]
  undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if space:
    steps.insert(0, normalizers.Prepend("▁"))
    undo.append(decoders.Strip(" ", 1, 0))
  backend.normalizer = normalizers.Sequence(steps)
  backend.decoder = decoders.Sequence(undo)
  return backend


def _add(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
  """Registers tokens that are matched before text is split, so that each becomes one id."""
  for special, wanted in ((True, _CONTROL), (False, _USER_DEFINED)):
    added = [
      tokenizers.AddedToken(token, normalized=False, special=special)
      for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
      # Old converters filled rows of the embedding that have no token with names [PADn].
      if kind == wanted and token != f"[PAD{i}]"
    ]
    (backend.add_special_tokens if special else backend.add_tokens)(added)


def _template(
  names: dict[str, str], special: dict[str, int | None], adds: dict[str, bool]
) -> processors.TemplateProcessing:
  bos = [names["bos"]] if adds["bos"] else []
  eos = [names["eos"]] if adds["eos"] else []
  first = [*bos, "$A", *eos]
  second = [f"{piece}:1" for piece in (*bos, "$B", *eos)]
  used = {names[name]: special[name] for name in adds if adds[name]}
  return processors.TemplateProcessing(
    single=first, pair=first + second, special_tokens=list(used.items())
  )
