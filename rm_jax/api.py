"""`RewardModel`: a trained model in a notebook or a pipeline, three calls wide."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rm_jax.batch.group import Group, check_vocabulary, make_group
from rm_jax.batch.tokenise import Sequence as Tokens
from rm_jax.data.dialogue import key_of
from rm_jax.data.report import DataError, RowError
from rm_jax.data.requests import Asked, read_row
from rm_jax.models.config import HeadConfig
from rm_jax.models.lora import Lora, is_base, merged
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import make_mesh, parameter_shardings
from rm_jax.pretrained.config import backbone_config, head_config
from rm_jax.pretrained.source import RECORD, Source, open_source, parse, save_folder
from rm_jax.reward.export import export
from rm_jax.reward.score import default_packing, read_groups, score_groups, solution_scores
from rm_jax.reward.setup import Model, convention_for, init_params, kept_dtype, read_params
from rm_jax.reward.setup import chat_template as template_of
from rm_jax.storage.remote import local
from rm_jax.types import Example, Text
from rm_jax.workdir.checkpoints import Checkpoints
from rm_jax.workdir.folder import is_workdir

log = logging.getLogger(__name__)

# Marks (responses to one prompt, or steps of them) that are read in one group.
_GROUP_MARKS = 8
# Columns that such a group may take: so many, or so many times those of its longest sequence. An
# answer sees none of the others' columns, and attention's square has them all; of more than this it
# grows faster than what one reading of the prompt saves.
_GROUP_COLUMNS = 1024
_GROUP_LENGTHS = 1.5


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

  @property
  def attributes(self) -> tuple[str, ...]:
    """Names of the attributes that the model rates, in order; empty where it gives one score."""
    return self.model.network.head.attributes

  @classmethod
  def from_pretrained(
    cls,
    name: str | Path,
    *,
    dtype: str = "float32",
    max_length: int = 0,
    chat_template: str = "",
    eos: str = "",
    mesh: Mapping[str, int] | None = None,
  ) -> "RewardModel":
    """Loads a model that has a reward head.

    Args:
      name: a run's workdir (its latest checkpoint), a folder saved by `save_pretrained`, or a
        Hugging Face sequence-classification folder or hub id; the last keeps its own pooling rule,
        and no EOS is added unless `eos` says so.
      dtype: of the backbone's compute.
      max_length: tokens of a prompt + response; 0 = as saved, or the architecture's most.
      chat_template: for messages: 'hh', a Jinja text or a file of it; '' = the model's own.
      eos: 'append' puts EOS behind every text that does not end in it, 'none' adds nothing; '' = as
        saved, or none. TRL's RewardTrainer appends it to strings and not to messages, and nothing
        in its checkpoint says which of them it was trained on (see docs/exports.md).
      mesh: {'data', 'fsdp', 'tensor'} -> devices; default all on 'data'.

    Raises:
      ValueError: nothing is there, it has no reward head, or tensors do not fit; `chat_template` or
        `eos` is none.
    """
    devices = make_mesh(mesh or {"data": -1, "fsdp": 1, "tensor": 1})
    name = local(name) if isinstance(name, str) else name
    path = Path(name)
    trained = is_workdir(path)
    source = open_source(str(path / "model" if trained else name))
    tokenizer = source.tokenizer()
    backbone = backbone_config(source.config)
    head = _head(source)
    if head.outputs != 1 and not head.ensemble and not head.attributes:
      raise ValueError(f"{name}: its head has {head.outputs} outputs; a reward has one")
    convention = convention_for(
      source.config, source.record, tokenizer, eos=eos or "none", max_length=max_length
    )
    if eos:
      convention = dataclasses.replace(convention, eos=eos)
    if chat_template:
      tokenizer.chat_template = template_of(chat_template)
    model = Model(
      network=Network(backbone, head, dtype=dtype),
      tokenizer=tokenizer,
      convention=convention,
      config=source.config,
      source=source,
      option="{0} of from_pretrained, or --{0} of a command,",
    )
    model.text_encoder()  # a template that renders nothing is refused before weights are read
    if not trained:
      flat = init_params(model, devices, jax.random.key(0), training=False)
      return cls(model, unflatten_dict(flat, sep="/"), devices)
    return cls(*_read_run(path, model, devices), devices)

  def score(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    lower: float = 0.0,
    aggregate: str = "min",
    progress: bool | str = False,
    origins: Sequence[str] = (),
    cuts: list[int] | None = None,
  ) -> np.ndarray:
    """Rewards of rows, in their order; float32 [N].

    Prompts that are cut because a row is longer than the model reads are warned of, once a call.

    Args:
      rows: each with `prompt` and `response` (or `completion`): strings, or message lists, which go
        through the chat template. Or a solution in steps, as `score_steps` takes it.
      lower: of an ensemble, how many standard deviations of its members are taken off their mean:
        a conservative reward for who optimises against it (Coste et al. 2023).
      aggregate: how a solution's steps become its score: 'min', 'product', 'mean' or 'last' (see
        `losses.process.aggregate`; 'product' is a log-probability, the others are log-odds).
      progress: show a bar; a text is its label.
      origins: what rows are called in errors; default their numbers.
      cuts: gets for each row how many tokens of its prompt were cut; then no warning is logged.

    Raises:
      DataError: a row that cannot be scored, named by its number.
      ValueError: `lower` of a model that is no ensemble, or another `aggregate`; a score that is
        not finite, or a token that the model does not know.
    """
    scores_NM = self.score_members(
      rows, aggregate=aggregate, progress=progress, origins=origins, cuts=cuts
    )
    if lower and scores_NM.shape[1] == 1:
      raise ValueError(f"lower is {lower} and the model has one member; expected an ensemble")
    return scores_NM.mean(axis=1) - np.float32(lower) * scores_NM.std(axis=1)

  def score_members(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    aggregate: str = "min",
    progress: bool | str = False,
    origins: Sequence[str] = (),
    cuts: list[int] | None = None,
  ) -> np.ndarray:
    """Rewards by each member of an ensemble, float32 [N, M]; M = 1 where it is none.

    Arguments and errors: as `score`.
    """
    origins = origins or _Numbered()
    asked = [read_row(row, origins[i]) for i, row in enumerate(rows)]
    head = self.model.network.head
    marks = self._score_marks(asked, head.ensemble, progress, origins, cuts)
    out = np.empty((len(asked), head.outputs if head.ensemble else 1), np.float32)
    solutions = [i for i, one in enumerate(asked) if one.steps is not None]
    for m in range(out.shape[1]):
      out[:, m] = [scores_OS[m, 0] for scores_OS in marks]
      out[solutions, m] = solution_scores([marks[i][m] for i in solutions], aggregate)
    return out

  def score_attributes(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> np.ndarray:
    """Ratings on each attribute, float32 [N, A]; their names are `attributes`.

    Args:
      rows: each with `prompt` and `response` (or `completion`), as `score` takes them.
      progress: show a bar.

    Raises:
      DataError: a row that cannot be scored, named by its number.
      ValueError: the model has no attributes.
    """
    if not self.attributes:
      raise ValueError("the model has no attributes; expected one that was trained with some")
    asked = [read_row(row, i, "response") for i, row in enumerate(rows)]
    marks = self._score_marks(asked, True, progress)
    return np.asarray(marks, np.float32).reshape(len(asked), len(self.attributes))

  def score_steps(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> list[np.ndarray]:
    """Scores of the steps of solutions: for each row float32 [number of steps], in its order.

    A step's score is the log-odds that the solution is right up to it and with it.

    Args:
      rows: each with `prompt`, a string or messages, and `completions` (or `steps`): the steps'
        texts, a list of strings.
      progress: show a bar.

    Raises:
      DataError: a row that cannot be scored, named by its number: not of this form, too long for
        the model, or the model is an encoder, which reads no steps.
    """
    asked = [read_row(row, i, "steps") for i, row in enumerate(rows)]
    return [scores_OS[0] for scores_OS in self._score_marks(asked, False, progress)]

  def read(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the head reads at the end of each response, float32 [N, D]; and its scores.

    These are `score_members`'.

    Args:
      rows: each with `prompt` and `response` (or `completion`), as `score` takes them.
      progress: show a bar.

    Raises:
      DataError: a row that cannot be read, named by its number.
    """
    asked = [read_row(row, i, "response") for i, row in enumerate(rows)]
    chunks, groups = self._groups(asked)
    head = self.model.network.head
    pooled_ND = np.empty((len(asked), self.model.network.backbone.width), np.float32)
    scores_NM = np.empty((len(asked), head.outputs if head.ensemble else 1), np.float32)
    found = self._run(read_groups, groups, "read" if progress else "", outputs=head.ensemble)
    self._check_finite([scores_MK for _, scores_MK in found], chunks, asked, _Numbered())
    for chunk, (pooled_KD, scores_MK) in zip(chunks, found, strict=True):
      pooled_ND[chunk] = pooled_KD
      scores_NM[chunk] = scores_MK.reshape(-1, len(chunk)).T
    return pooled_ND, scores_NM

  def _score_marks(
    self,
    asked: Sequence[Asked],
    outputs: bool,
    progress: bool | str,
    origins: Sequence[str] | None = None,
    cuts: list[int] | None = None,
  ) -> list[np.ndarray]:
    """For each row its marks' rewards, float32 [1, marks], or with `outputs` all the head's.

    A mark is a response or a step.
    """
    origins = origins or _Numbered()
    chunks, groups = self._groups(asked, origins, cuts)
    label = progress if isinstance(progress, str) else "score" if progress else ""
    scores = self._run(score_groups, groups, label, outputs=outputs)
    self._check_finite(scores, chunks, asked, origins)
    out: list[Any] = [None] * len(asked)
    for chunk, group, scores_OS in zip(chunks, groups, scores, strict=True):
      scores_OS = scores_OS.reshape(-1, len(group.marks))
      for n, i in enumerate(chunk):
        out[i] = scores_OS[:, group.response == n]
    return out

  def _groups(
    self,
    asked: Sequence[Asked],
    origins: Sequence[str] | None = None,
    cuts: list[int] | None = None,
  ) -> tuple[list[list[int]], list[Group]]:
    """Rows as groups of what has its prompt in common: (which rows each holds, the groups)."""
    origins = origins or _Numbered()
    encoder = self.model.text_encoder()
    whole = iter(encoder.sequences([(a.prompt, a.response) for a in asked if a.steps is None]))
    tokens = []
    for i, one in enumerate(asked):
      try:
        if one.steps is None:
          tokens.append(next(whole))
        else:
          tokens.append(encoder.step_sequence(one.prompt, one.steps))
      except ValueError as error:
        raise DataError(f"{origins[i]}: {error}") from None
      if isinstance(tokens[-1], RowError):
        raise DataError(f"{origins[i]}: {tokens[-1].reason}: {tokens[-1].detail}")
    cut = [one.cut for one in tokens]
    if cuts is not None:
      cuts += cut
    elif any(cut):
      log.warning(cut_message(cut, encoder.convention.max_length))
    chunks = _siblings([a.prompt for a in asked], tokens, self.model.network.causal)
    return chunks, [_group([tokens[i] for i in chunk]) for chunk in chunks]

  def score_groups(
    self, groups: Sequence[Group], *, outputs: bool = False, progress: str = ""
  ) -> list[np.ndarray]:
    """Scores of tokenised groups, for those who bring their own `Example`s; see `reward.score`."""
    scores = self._run(score_groups, groups, progress, outputs=outputs)
    for i, one in enumerate(scores):
      if not np.isfinite(one).all():
        self._refuse(f"group {i}", one)
    return scores

  def _check_finite(
    self,
    scores: Sequence[np.ndarray],
    chunks: Sequence[list[int]],
    asked: Sequence[Asked],
    origins: Sequence[str],
  ) -> None:
    """ValueError where a row's score is not finite."""
    bad = [i for i, one in enumerate(scores) if not np.isfinite(one).all()]
    # What is not finite in one row is so in all that are packed with it: each is asked alone.
    for n in (n for i in bad for n in chunks[i]):
      _, groups = self._groups([asked[n]], [origins[n]], [])
      (alone,) = self._run(score_groups, groups, "", outputs=True)
      if not np.isfinite(alone).all():
        self._refuse(origins[n], alone)
    if bad:
      self._refuse(origins[chunks[bad[0]][0]], scores[bad[0]])

  def _refuse(self, origin: str, scores: np.ndarray) -> None:
    """ValueError: scores that are not finite, and whose."""
    bad = scores[~np.isfinite(scores)][0]
    whose = self.model.source.path if self.model.source else "the model"
    raise ValueError(
      f"{origin}: its score is {bad}; expected a finite number: the weights of "
      f"{whose} are damaged, or overflow in {self.model.network.dtype}"
    )

  def _run(self, what: Callable, groups: Sequence[Group], progress: str, **options) -> list:
    check_vocabulary(groups, self.model.network.backbone.vocab)
    return what(
      self.model.network,
      self.params,
      groups,
      mesh=self.mesh,
      packing=default_packing(self.mesh, causal=self.model.network.causal),
      progress=progress,
      **options,
    )

  def save_pretrained(self, path: str | Path) -> None:
    """Writes a Hugging Face sequence-classification folder (safetensors, float32), and our record.

    transformers' AutoModelForSequenceClassification reads it, and its tokenizer ends a text as the
    model was trained; so does `from_pretrained`, by the record. The mean of an ensemble and the mix
    of attributes are one row there; members and attributes are in our record. What such a folder
    has no word for is warned of; docs/exports.md says what to call.
    """
    source = self.model.source
    made = export(self.model, self.params, kinds=source.record.get("kinds", ()) if source else ())
    for limit in made.limits:
      log.warning("%s: %s", path, limit)
    save_folder(
      Path(path),
      config=made.config,
      tokenizer=made.tokenizer,
      record=made.record,
      tensors=made.tensors.items(),
    )


def _read_run(path: Path, model: Model, mesh: Mesh) -> tuple[Model, dict]:
  """(model, parameters) of a workdir's latest checkpoint, adapters merged."""
  record = model.source.record
  where = model.source.path / RECORD
  lora = parse(Lora, record["lora"], f"{where}: lora") if record.get("lora") else None
  # A run may have its frozen layers in a stack of their own: it is read as it was written.
  if type(frozen := record.get("frozen_layers", 0)) is not int:
    raise ValueError(f"{where}: frozen_layers is {frozen!r:.80}; expected a whole number")
  network = dataclasses.replace(model.network, frozen=frozen, lora=lora)
  shapes = flatten_dict(network.abstract(), sep="/")
  base: dict[str, jax.Array] = {}
  if name := record.get("base"):
    if not isinstance(name, str):
      raise ValueError(f"{where}: base is {name!r:.80}; expected a folder or hub id")
    try:
      source = open_source(local(name))
    except (ValueError, OSError) as error:
      raise ValueError(
        f"{path} holds adapters of {name}, which is not there any more: {error}"
      ) from None
    read, _ = read_params(dataclasses.replace(model, network=network, source=source), mesh)
    base = {p: x for p, x in read.items() if is_base(p)}
  shardings = parameter_shardings(shapes, mesh)
  saved = {
    p: jax.ShapeDtypeStruct(x.shape, kept_dtype(network, p), sharding=shardings[p])
    for p, x in shapes.items()
    if p not in base
  }
  checkpoints = Checkpoints(path / "checkpoints")
  flat = checkpoints.restore_params(saved, base)
  newest = max(checkpoints.steps())
  if checkpoints.step != newest:
    log.warning(
      "%s: THE SCORES ARE THOSE OF STEP %d: its latest checkpoint, of step %d, is damaged. The "
      "training command, given again, makes it anew",
      path,
      checkpoints.step,
      newest,
    )
  elif (told := _summary_step(path)) not in (None, checkpoints.step):
    log.warning(
      "%s: the scores are those of step %d, its latest; summary.json tells of step %d",
      path,
      checkpoints.step,
      told,
    )
  network = dataclasses.replace(network, lora=None)
  if lora:
    shapes = flatten_dict(network.abstract(), sep="/")
    shardings = parameter_shardings(shapes, mesh)
    flat = jax.jit(merged, static_argnums=1, out_shardings=shardings)(flat, lora)
  return dataclasses.replace(model, network=network), unflatten_dict(flat, sep="/")


def _summary_step(path: Path) -> int | None:
  """The step that a run's summary.json describes; None where there is none that says so."""
  try:
    return int(json.loads((path / "summary.json").read_text(encoding="utf-8"))["train"]["steps"])
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _head(source: Source) -> HeadConfig:
  saved = source.record.get("head")
  where = f"{source.path / RECORD}: head"
  head = parse(HeadConfig, saved, where) if saved else head_config(source.config)
  return dataclasses.replace(head, dropout=0.0)


class _Numbered(Sequence):
  """What rows are called: 'row 0', 'row 1' and so on."""

  def __len__(self) -> int:
    return 0

  def __getitem__(self, i: int) -> str:
    return f"row {i}"


def cut_message(cuts: Sequence[int], max_length: int) -> str:
  """What is said of rows of whose prompts tokens were cut."""
  found = [cut for cut in cuts if cut]
  return (
    f"{len(found)} of {len(cuts)} rows are longer than {max_length} tokens: of their prompts "
    f"{sum(found)} tokens are left out, the oldest first"
  )


def _siblings(prompts: Sequence[Text], tokens: Sequence[Tokens], share: bool) -> list[list[int]]:
  """Rows by groups: those that have their prompt in common, as many as a group takes."""
  chunks: list[list[int]] = []
  # prompt -> its latest chunk, and what that takes: (chunk, columns, marks, its longest sequence).
  open_chunk: dict[Any, tuple[int, int, int, int]] = {}
  for i, (prompt, one) in enumerate(zip(prompts, tokens, strict=True)):
    key = key_of(prompt)
    at, columns, marks, longest = open_chunk.get(key, (-1, 0, 0, 0))
    columns, marks = columns + len(one.ids) - one.prompt, marks + len(one.marks)
    longest = max(longest, len(one.ids))
    fits = columns <= max(_GROUP_COLUMNS, _GROUP_LENGTHS * longest) and marks <= _GROUP_MARKS
    # A prompt that was cut differs from response to response: there is nothing to share.
    if share and at >= 0 and not one.cut and fits:
      chunks[at].append(i)
      open_chunk[key] = at, columns, marks, longest
    else:
      chunks.append([i])
      if not one.cut:
        open_chunk[key] = len(chunks) - 1, len(one.ids), len(one.marks), len(one.ids)
  return chunks


def _group(tokens: Sequence[Tokens]) -> Group:
  """A group to be scored; nothing was said of its responses."""
  marks = sum(len(one.marks) for one in tokens)
  return make_group(tokens, Example("-", ("-",) * len(tokens), (0.0,) * marks))
