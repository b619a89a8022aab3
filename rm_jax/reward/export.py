"""A trained model as a Hugging Face folder that gives its scores without our code.

transformers' decoders with a classifier's head read one row of a linear map at the rightmost token
that is not the pad token. So the head is folded into one row, the chat template and the tokenizer
end a text as in training, and the pad token is one that no text ends in. What such a folder cannot
express is listed in `Export.limits`. A model with an implicit reward becomes a language model's
folder, which gives no scores by itself.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.batch.tokenise import TextEncoder
from rm_jax.data.report import RowError
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.models.lora import merged
from rm_jax.pretrained import clients, hf
from rm_jax.reward.setup import TextModel

# A pad token of our own, for tokenizers all of whose special tokens may end a text.
PAD = "<|rm_jax_pad|>"
_PAIR_ONLY = (
  "this encoder reads a pair, which a chat template cannot render: tokenise (prompt, response) as "
  "docs/exports.md of rm_jax has it, or read the folder with rm_jax"
)
_SHAPED = (
  "a chain of shaping is saved with the model, which transformers does not apply: its scores are "
  "the model's own. RewardModel.score(rows, shaped=True) applies it"
)
# Texts whose tokens, ours and the export's, are compared when a model is saved.
_PROBES = (("Is 3 < 5?\n", " Yes, it is."), ("  Über 日本 12 ", "no\n\n"), ("a", "b"))


@dataclasses.dataclass(frozen=True)
class Export:
  """What is written by `pretrained.source.save_folder`.

  Attributes:
    config: config.json's dictionary.
    tokenizer: for readers without our code.
    record: rm_jax.json's dictionary, from which `RewardModel.from_pretrained` restores the model.
    tensors: Hugging Face name -> float32 array.
    limits: sentences, each naming a difference to the model that the files cannot express.
  """

  config: dict[str, Any]
  tokenizer: Any
  record: dict[str, Any]
  tensors: dict[str, np.ndarray]
  limits: tuple[str, ...]


def export(
  model: TextModel,
  params: dict,
  *,
  kinds: Sequence[str] = (),
  mix: Mapping[str, float] | None = None,
  shaped: bool = False,
) -> Export:
  """Makes a model's export.

  Args:
    model: network, tokenizer and convention.
    params: nested dict.
    kinds: of feedback that it was trained on, where known.
    mix: attribute -> its weight in the reward; None = the model's own mix.
    shaped: whether a chain of shaping is saved beside it.

  Raises:
    ValueError: as `RewardModel.save_pretrained`.
  """
  if shaped:
    made = export(model, params, kinds=kinds, mix=mix)
    return dataclasses.replace(made, limits=(*made.limits, _SHAPED))
  network = model.network
  if network.implicit:
    return _language_model(model, params, kinds=kinds, mix=mix)
  head = _declared_mix(network.head, params, mix)
  if network.head.gate:
    params = params | {"head": {k: v for k, v in params["head"].items() if k != "gating"}}
    network = dataclasses.replace(network, head=head)
    model = dataclasses.replace(model, network=network)
  if lora := network.lora:
    params = unflatten_dict(merged(flatten_dict(params, sep="/"), lora), sep="/")
  tensors = dict(hf.export_params(network, params))
  saved = dataclasses.replace(
    model, network=dataclasses.replace(network, head=head, frozen=0, lora=None)
  )
  record = saved.record()
  if kinds:
    record["kinds"] = list(kinds)
  config = clients.client_config(saved.exported_config(), network.backbone)
  if head.ensemble or head.attributes:
    own = _fold_head(network, head, tensors)
    record["head_tensors"] = clients.packed_tensors(own)
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
  limits = list(_limits(model, kinds))
  if mix is None and len(head.attributes) > 1 and np.ptp(head.mix) == 0:
    limits.append(
      f"its reward weighs {', '.join(head.attributes)} alike, by {head.mix[0]:.3g} each, as "
      "model.mix does where it is not set; mix={attribute: weight} sets other weights"
    )
  if not hasattr(model.tokenizer, "backend_tokenizer"):
    limits.append(
      "its tokenizer is no fast one, and is written as it is: without the EOS, BOS and date that "
      "the model was trained with"
    )
    return Export(config, model.tokenizer, record, tensors, tuple(limits))
  tokenizer = _tokenizer(model)
  pad, skipped = tokenizer.pad_token_id, model.convention.pad
  if pad is not None:
    config["pad_token_id"] = pad
    if pad >= network.backbone.vocab:
      (name,) = hf.hf_names(network, "backbone/embed/embedding")
      _make_room(config, tensors, name, pad, network.backbone.vocab)
  if _skips_text(model) and pad != skipped:
    config["pad_token_id"] = skipped
    limits.append(
      f"the score is read at the last token that is not {skipped} "
      f"({tokenizer.convert_ids_to_tokens(skipped)!r}), which is no special token and so not the "
      "tokenizer's pad token: transformers scores one text at a time, and of a padded batch reads "
      "padding"
    )
  record["tokenizer"] = clients.tokenizer_record(model.tokenizer, tokenizer)
  limits += _differences(model, tokenizer)
  return Export(config, tokenizer, record, tensors, tuple(limits))


def _language_model(
  model: TextModel, params: dict, *, kinds: Sequence[str], mix: Mapping[str, float] | None
) -> Export:
  """The export of a model whose reward is implicit: a language model, and its record.

  The tokenizer is the model's own, since one that ends every text in EOS could not begin to write.
  """
  if mix is not None:
    raise InputError(f"mix weighs {', '.join(map(str, mix))}; the model's attributes are none")
  network = model.network
  if lora := network.lora:
    params = unflatten_dict(merged(flatten_dict(params, sep="/"), lora), sep="/")
  saved = dataclasses.replace(model, network=dataclasses.replace(network, frozen=0, lora=None))
  record = saved.record() | ({"kinds": list(kinds)} if kinds else {})
  config = clients.client_config(saved.exported_config(), network.backbone)
  config.pop("problem_type", None)
  tensors = dict(hf.export_params(network, params))
  limit = (
    "transformers reads it as a language model, which has no rewards; "
    "RewardModel.from_pretrained scores with it"
  )
  if model.reference:
    limit += f", relative to {model.reference.name}"
  return Export(config, model.tokenizer, record, tensors, (limit,))


def _declared_mix(head: HeadConfig, params: dict, mix: Mapping[str, float] | None) -> HeadConfig:
  """The head with the weights that its attributes have in the export, and without a gate."""
  names = ", ".join(head.attributes)
  if mix is None:
    if head.gate:
      raise InputError(
        f"the weights of this model's attributes ({names}) are a function of the prompt "
        "(model.gate), for which a Hugging Face folder has no place; expected mix={attribute: "
        "weight}, or use the run's workdir, which RewardModel.from_pretrained reads"
      )
    if not head.attributes:
      return head
    return dataclasses.replace(head, mix=np.asarray(params["head"]["mix"]).tolist())
  if not head.attributes or set(mix) != set(head.attributes):
    given = ", ".join(map(str, mix)) or "nothing"
    raise InputError(
      f"mix weighs {given}; the model's attributes are {names or 'none'}: expected a weight for "
      "each of them"
    )
  given = [mix[name] for name in head.attributes]
  try:
    # As the head has them: of a float64 they may be 0 or infinite.
    with np.errstate(over="ignore"):
      weights = np.asarray(given, np.float64).astype(np.float32)
  except (TypeError, ValueError):
    raise InputError(f"mix is {dict(mix)}; expected a number for each attribute") from None
  if weights.shape != (len(given),) or not np.isfinite(weights).all() or not weights.any():
    raise InputError(
      f"mix is {dict(mix)}; expected finite weights that are not all 0, as float32 has them"
    )
  weights = [float(weight) for weight in given]
  return dataclasses.replace(head, mix=weights, gate=False)


def _fold_head(network: Any, head: Any, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Replaces the head's last layer by one row that gives the reward; returns what it was.

  This is exact, because an ensemble's mean and a mix of attributes are linear in the outputs.
  """
  weights_O = np.asarray(head.mix or [1 / head.outputs] * head.outputs, np.float64)
  paths = [path for path in flatten_dict(network.abstract(), sep="/") if "head/out/" in path]
  own = {name: tensors[name] for path in paths for name in hf.hf_names(network, path)}
  for name, array in own.items():
    tensors[name] = np.tensordot(weights_O, array.astype(np.float64), 1)[None].astype(np.float32)
  return own


def _make_room(
  config: dict[str, Any], tensors: dict[str, np.ndarray], name: str, token: int, vocab: int
) -> None:
  """Adds rows of zeros to the embedding `name`, up to `token`, a pad token that nothing reads."""
  tensors[name] = np.pad(tensors[name], ((0, token + 1 - vocab), (0, 0)))
  config["vocab_size"] = token + 1


def _limits(model: TextModel, kinds: Sequence[str]) -> Sequence[str]:
  convention = model.convention
  if convention.pooling == "mean":
    yield (
      "the model reads the mean over a response; transformers reads one token of it, so that its "
      "scores are others. RewardModel.from_pretrained reads it as it was trained"
    )
  if getattr(model.network.backbone, "attention_cap", None) is not None:
    yield (
      "the model caps attention's logits; transformers 5 does, and 4.51 where from_pretrained is "
      "given attn_implementation='eager'"
    )
  if "step" in kinds:
    yield (
      "the model was trained on steps, and has a score behind each; transformers reads one token "
      "of a text. RewardModel.score_steps reads them all"
    )
  if model.tokenizer.chat_template and not convention.encoder:
    yield (
      f"conversations longer than {convention.limits} are cut by whole turns, oldest first; "
      "transformers reads them whole, or with truncation=True cuts their oldest tokens"
    )
  if convention.encoder:
    yield (
      f"pairs longer than {convention.limits} lose the prompt's oldest tokens first; "
      "transformers does so with truncation='only_first', which fails where the response leaves "
      "the prompt no token, and with truncation=True cuts both"
    )
  if model.tokenizer.chat_template and convention.encoder:
    yield (
      "messages become a pair (prompt, response), which apply_chat_template cannot give: it "
      "refuses them, and docs/exports.md has what to call"
    )


def _tokenizer(model: TextModel) -> Any:
  tokenizer, convention = model.tokenizer, model.convention
  encoder = model.text_encoder()
  append = encoder.asking_ids.tolist()
  if encoder.appends:
    (ids,) = tokenizer(["a"]).input_ids
    append = [tokenizer.eos_token_id] if ids[-1] != tokenizer.eos_token_id else []
  return clients.client_tokenizer(
    tokenizer,
    chat_template=_template(encoder),
    append=append,
    pad=_pad(model),
    max_length=convention.max_length,
    pairs=convention.encoder,
  )


def _template(encoder: TextEncoder) -> str | None:
  """A chat template that renders a conversation as `TextEncoder` reads it: with BOS, EOS, question.

  For an encoder it is one that refuses every conversation; None if the tokenizer has none.
  """
  own = clients.template_of(encoder.tokenizer)
  if own is None:
    return None
  if encoder.convention.encoder:
    return "{{ raise_exception(" + _quoted(_PAIR_ONLY) + ") }}"
  tokenizer = encoder.tokenizer
  ask = before = after = ""
  if question := encoder.convention.question:
    turn = "{'role': 'user', 'content': " + _quoted(question) + "}"
    ask = (
      "{% if not add_generation_prompt %}"
      "{% set messages = (messages | list) + [" + turn + "] %}"
      "{% set add_generation_prompt = true %}{% endif %}"
    )
  if len(encoder.bos):
    bos = _quoted("".join(tokenizer.convert_ids_to_tokens(encoder.bos.tolist())))
    before = "{% if not rm_jax_text.startswith(" + bos + ") %}{{ " + bos + " }}{% endif %}"
  if encoder.appends:
    eos = _quoted(tokenizer.eos_token)
    ends = f"rm_jax_text.rstrip().endswith({eos})"
    after = "{% if not add_generation_prompt and not " + ends + " %}{{ " + eos + " }}{% endif %}"
  dated = re.search("strftime_now|date_string", own)
  if not (ask or before or after or dated):
    return own
  date = "{% set date_string = " + _quoted(encoder.convention.date) + " %}"
  # Jinja drops one newline at the end of a template's source, which here is not its end. The empty
  # strings keep whitespace at either end from being trimmed.
  return (
    (encoder.dated() + date if dated else "")
    + ask
    + "{% set rm_jax_text %}{{ '' }}"
    + re.sub(r"(\r\n|\r|\n)\Z", "", own)
    + "{{ '' }}{% endset %}"
    + before
    + "{{ rm_jax_text }}"
    + after
  )


def _quoted(text: str) -> str:
  """A string literal of Jinja."""
  return json.dumps(text, ensure_ascii=False)


def _skips_text(model: TextModel) -> bool:
  """Whether the pooling passes over a token of the vocabulary, which is chosen by config.json."""
  pad = model.convention.pad
  return model.convention.pooling == "hf" and pad is not None and 0 <= pad < len(model.tokenizer)


def _pad(model: TextModel) -> str | None:
  """The export's pad token: one that no text ends in, because transformers' pooling skips it.

  So it is where the pooling is 'last', or 'hf' without a token that is passed over. With 'hf' it is
  else that token, if it is a special one. Otherwise the tokenizer keeps the pad token that it has:
  'first' reads no token at the end, and of 'mean' transformers gives other scores whatever it is.
  """
  tokenizer, convention = model.tokenizer, model.convention
  if _skips_text(model):
    token = tokenizer.backend_tokenizer.get_added_tokens_decoder().get(convention.pad)
    return token.content if token and token.special else tokenizer.pad_token
  chosen = convention.pooling == "last" or convention.pad is not None
  if not chosen and tokenizer.pad_token_id is not None:
    return tokenizer.pad_token
  template = clients.template_of(tokenizer) or ""
  taken = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, None}
  added = sorted(tokenizer.backend_tokenizer.get_added_tokens_decoder().items())
  fitting = [
    token.content
    for i, token in added
    if token.special
    and token.content not in taken
    and token.content not in template
    and i < model.network.backbone.vocab
  ]
  if tokenizer.pad_token in fitting:
    return tokenizer.pad_token
  return min(fitting, key=lambda token: "pad" not in token.lower(), default=PAD)


def _differences(model: TextModel, tokenizer: Any) -> Sequence[str]:
  """The first difference between the export's tokens and ours on a few texts; mostly none.

  There is one where a tokenizer does something that `_tokenizer` does not know of.
  """
  encoder = model.text_encoder()
  for prompt, response in _PROBES:
    turns = ({"role": "user", "content": prompt},), ({"role": "assistant", "content": response},)
    for what, pair in (("strings", (prompt, response)), ("messages", turns)):
      if what == "messages" and (encoder.convention.encoder or not tokenizer.chat_template):
        continue
      (ours,) = encoder.sequences([pair])
      if isinstance(ours, RowError):  # the template refuses these messages, in the export as well
        continue
      if what == "messages":
        theirs = tokenizer.apply_chat_template([*turns[0], *turns[1]], tokenize=True)["input_ids"]
      elif encoder.convention.encoder:
        theirs = tokenizer(prompt, response).input_ids
      else:
        theirs = tokenizer(prompt + response).input_ids
      if not ours.cut and list(theirs) != ours.ids.tolist():
        yield (
          f"{what} have other tokens in transformers: of {(prompt, response)} {list(theirs)}, and "
          f"here {ours.ids.tolist()}"
        )
        return
