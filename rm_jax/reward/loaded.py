"""From a saved model, or another library's, to a `TextModel` that scores."""

import dataclasses
from collections.abc import Sequence

from rm_jax.declared import parse
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig, LikelihoodHead
from rm_jax.models.network import Network
from rm_jax.pretrained.config import backbone_config, head_config, tied_head
from rm_jax.pretrained.source import RECORD, Source
from rm_jax.reward import verdict
from rm_jax.reward.setup import Reference, TextModel, convention_for
from rm_jax.reward.setup import chat_template as template_of


def text_model_of(
  source: Source,
  *,
  dtype: str,
  max_length: int,
  chat_template: str,
  eos: str,
  steps: str,
  words: Sequence[str],
  question: str,
) -> TextModel:
  """The text model of a checkpoint with a reward head, or of a language model's verdict.

  Args:
    source: the checkpoint.
    dtype, max_length, chat_template, eos, steps: as `RewardModel.from_pretrained` takes them.
    words: its `verdict`.
    question: likewise.

  Raises:
    ValueError: as `RewardModel.from_pretrained`, for what is seen without the weights.
  """
  tokenizer = source.tokenizer()
  backbone = backbone_config(source.config)
  head, reference = saved_head(source)
  if head.outputs != 1 and not head.ensemble and not head.attributes:
    raise InputError(f"{source.path}: its head has {head.outputs} outputs; a reward has one")
  if steps and isinstance(head, HeadConfig):  # an implicit reward is a running sum already
    head = dataclasses.replace(head, steps=steps)
  if words:
    verdict.check(source, head, words, f"verdict is {','.join(map(str, words))}")
    words = tuple(words)
    question = verdict.question_of(question, words)
  if question and isinstance(head, LikelihoodHead):
    raise InputError(
      f"question is {question!r:.60} and the reward of {source.path} is implicit, which would "
      "count the likelihood of the question as the response's; expected question=''"
    )
  convention = convention_for(
    source.config,
    source.record,
    tokenizer,
    eos=eos or "none",
    max_length=max_length,
    question=question,
  )
  if eos:
    convention = dataclasses.replace(convention, eos=eos)
  if chat_template:
    tokenizer.chat_template = template_of(chat_template)
  model = TextModel(
    network=Network(backbone, head, dtype=dtype),
    tokenizer=tokenizer,
    convention=convention,
    config=source.config,
    source=source,
    option="{0} of from_pretrained, or --{0} of a command,",
    reference=reference,
    words=words,
  )
  encoder = model.text_encoder()  # raises for a chat template that fails, before weights are read
  if words:
    encoder.verdict_ids(words)  # raises for words that begin alike
  return model


def saved_head(source: Source) -> tuple[HeadConfig | LikelihoodHead, Reference | None]:
  """(the head's config, from our record or else from config.json; an implicit reward's reference).

  A head has no dropout, for scoring. Raises InputError where the record cannot be used.
  """
  where = f"{source.path / RECORD}: "
  if "implicit" in source.record:
    said = source.record["implicit"]
    known = {"beta", "normalised", "reference"}
    if not isinstance(said, dict) or not {"beta"} <= said.keys() <= known:
      raise InputError(
        f"{where}implicit is {said!r:.200}; expected beta, and where it has them normalised and "
        "reference"
      )
    fields = {name: value for name, value in said.items() if name != "reference"}
    reference = said.get("reference")
    if reference is not None:
      reference = parse(Reference, reference, where + "implicit.reference")
    known = {"reference": reference is not None, "tied": tied_head(source.config)}
    return parse(LikelihoodHead, fields | known, where + "implicit"), reference
  saved = source.record.get("head")
  head = parse(HeadConfig, saved, where + "head") if saved else head_config(source.config)
  return dataclasses.replace(head, dropout=0.0), None
