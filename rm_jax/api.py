"""`RewardModel`: a trained model in a notebook or a pipeline, three calls wide."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rm_jax.data.dialogue import messages_of, text_of
from rm_jax.data.group import Group, make_group
from rm_jax.data.report import DataError, RowError
from rm_jax.data.tokenise import Sequence as Tokens
from rm_jax.models import hf
from rm_jax.models.config import HeadConfig, backbone_config, head_config
from rm_jax.models.network import Network
from rm_jax.models.source import Source, open_source, save_folder
from rm_jax.train.checkpoints import Checkpoints
from rm_jax.train.mesh import make_mesh, parameter_shardings
from rm_jax.train.score import default_packing, score_groups
from rm_jax.train.setup import Model, convention_for, init_params
from rm_jax.train.workdir import is_workdir
from rm_jax.types import Example, Text

# Responses to one prompt that are read in one group, and the columns such a group may take.
_SIBLINGS = 8
_GROUP_COLUMNS = 1024


class RewardModel:
  """A reward model: text in, a real number out.

  Args:
    model: network, tokenizer and convention.
    params: nested dict on the mesh.
    mesh: the devices.

  Make one with `from_pretrained`.
  """

  def __init__(self, model: Model, params: dict, mesh: Mesh):
    self.model = model
    self.params = params
    self.mesh = mesh

  @classmethod
  def from_pretrained(
    cls,
    name: str | Path,
    *,
    dtype: str = "float32",
    max_length: int = 0,
    mesh: Mapping[str, int] | None = None,
  ) -> "RewardModel":
    """Loads a model that has a reward head.

    Args:
      name: a run's workdir (its latest checkpoint), a folder saved by `save_pretrained`, or a
        Hugging Face sequence-classification folder or hub id; the last keeps its own pooling rule,
        and no EOS is added.
      dtype: of the backbone's compute.
      max_length: tokens of a prompt + response; 0 = as saved, or the architecture's most.
      mesh: {'data', 'fsdp', 'tensor'} -> devices; default all on 'data'.

    Raises:
      ValueError: nothing is there, it has no reward head, or tensors do not fit.
    """
    devices = make_mesh(mesh or {"data": -1, "fsdp": 1, "tensor": 1})
    path = Path(name)
    trained = is_workdir(path)
    source = open_source(str(path / "model" if trained else name))
    tokenizer = source.tokenizer()
    backbone = backbone_config(source.config)
    head = _head(source)
    if head.outputs != 1 and not head.ensemble:
      raise ValueError(f"{name}: its head has {head.outputs} outputs; a reward has one")
    model = Model(
      network=Network(backbone, head, dtype=dtype),
      tokenizer=tokenizer,
      convention=convention_for(
        source.config, source.record, tokenizer, eos="none", max_length=max_length
      ),
      config=source.config,
      source=source,
    )
    if not trained:
      flat = init_params(model, devices, jax.random.key(0), training=False)
      return cls(model, unflatten_dict(flat, sep="/"), devices)
    # A run may have its frozen layers in a stack of their own: it is read as it was written.
    frozen = source.record.get("frozen_layers", 0)
    model = dataclasses.replace(model, network=dataclasses.replace(model.network, frozen=frozen))
    shapes = flatten_dict(model.network.abstract(), sep="/")
    shardings = parameter_shardings(shapes, devices)
    abstract = {
      p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[p]) for p, x in shapes.items()
    }
    params = Checkpoints(path / "checkpoints").restore_params(abstract)
    return cls(model, params, devices)

  def score(
    self, rows: Iterable[Mapping[str, Any]], *, lower: float = 0.0, progress: bool = False
  ) -> np.ndarray:
    """Rewards of (prompt, response) rows, in their order; float32 [N].

    Args:
      rows: each with `prompt` and `response` (or `completion`): strings, or message lists, which go
        through the chat template.
      lower: of an ensemble, how many standard deviations of its members are taken off their mean:
        a conservative reward for who optimises against it (Coste et al. 2023).
      progress: show a bar.

    Raises:
      DataError: a row that cannot be scored, named by its number.
      ValueError: `lower` of a model that is no ensemble.
    """
    scores_NM = self.score_members(rows, progress=progress)
    if lower and scores_NM.shape[1] == 1:
      raise ValueError(f"lower is {lower} and the model has one member; expected an ensemble")
    return scores_NM.mean(axis=1) - np.float32(lower) * scores_NM.std(axis=1)

  def score_members(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> np.ndarray:
    """Rewards by each member of an ensemble, float32 [N, M]; M = 1 where it is none.

    Arguments and errors: as `score`.
    """
    pairs = [_row(row, i) for i, row in enumerate(rows)]
    if not pairs:
      return np.zeros((0, self.model.network.head.outputs), np.float32)
    tokens = self.model.text_encoder().sequences(pairs)
    for i, one in enumerate(tokens):
      if isinstance(one, RowError):
        raise DataError(f"row {i}: {one.reason}: {one.detail}")
    groups, order = _siblings(pairs, tokens, self.model.network.causal)
    scores = self.score_groups(groups, members=True, progress="score" if progress else "")
    out = np.empty((len(pairs), self.model.network.head.outputs), np.float32)
    for rows_of, values in zip(order, scores, strict=True):
      out[rows_of] = values.reshape(-1, len(rows_of)).T
    return out

  def score_groups(
    self, groups: Sequence[Group], *, members: bool = False, progress: str = ""
  ) -> list[np.ndarray]:
    """Scores of tokenised groups, for those who bring their own `Example`s.

    float32 [marks] each; with `members`, of an ensemble, [members, marks].
    """
    return score_groups(
      self.model.network,
      self.params,
      groups,
      members=members,
      mesh=self.mesh,
      packing=default_packing(self.mesh, causal=self.model.network.causal),
      progress=progress,
    )

  def save_pretrained(self, path: str | Path) -> None:
    """Writes a Hugging Face sequence-classification folder (safetensors, float32), and our record.

    transformers' AutoModelForSequenceClassification reads it; so does `from_pretrained`.
    """
    model = self.model
    save_folder(
      Path(path),
      config=model.exported_config(),
      tokenizer=model.tokenizer,
      record=model.record() | {"frozen_layers": 0},
      tensors=hf.export_params(model.network, self.params),
    )


def _head(source: Source) -> HeadConfig:
  saved = source.record.get("head")
  head = HeadConfig(**saved) if saved else head_config(source.config)
  return dataclasses.replace(head, dropout=0.0)


def _row(row: Mapping[str, Any], i: int) -> tuple[Text, Text]:
  """(prompt, response) of a row, both strings or both messages."""
  name = "response" if "response" in row else "completion"
  for column in ("prompt", name):
    if column not in row:
      raise DataError(
        f"row {i}: has columns {sorted(row)}; expected prompt and response (or completion)"
      )
  prompt, response = row["prompt"], row[name]
  try:
    if isinstance(prompt, str) and isinstance(response, str):
      return text_of(prompt, "prompt"), text_of(response, name)
    # A conversation's answer may be given as its bare text.
    if isinstance(response, str):
      response = [{"role": "assistant", "content": response}]
    return messages_of(prompt, "prompt"), messages_of(response, name)
  except RowError as error:
    raise DataError(f"row {i}: {error.reason}: {error.detail}") from None


def _siblings(
  pairs: Sequence[tuple[Text, Text]], tokens: Sequence[Tokens], share: bool
) -> tuple[list[Group], list[list[int]]]:
  """Groups of rows that have their prompt in common, and which rows each is of."""
  chunks: list[list[int]] = []
  open_chunk: dict[Any, tuple[int, int]] = {}  # prompt -> its latest chunk, columns of that
  for i, ((prompt, _), one) in enumerate(zip(pairs, tokens, strict=True)):
    key = prompt if isinstance(prompt, str) else tuple((m["role"], m["content"]) for m in prompt)
    at, columns = open_chunk.get(key, (-1, 0))
    more = len(one.ids) - one.prompt
    fits = at >= 0 and len(chunks[at]) < _SIBLINGS and columns + more <= _GROUP_COLUMNS
    # A prompt that was cut differs from response to response: there is nothing to share.
    if share and fits and not one.cut:
      chunks[at].append(i)
      open_chunk[key] = at, columns + more
    else:
      chunks.append([i])
      if not one.cut:
        open_chunk[key] = len(chunks) - 1, len(one.ids)
  groups = [
    make_group(
      [tokens[i] for i in members],
      Example("-", tuple("-" for _ in members), (0.0,) * len(members)),
    )
    for members in chunks
  ]
  return groups, chunks
