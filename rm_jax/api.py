"""`RewardModel`: loads a trained reward model, scores text with it, and saves it.

Notebooks, audits, curation, and the commands that score text do so through it.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rm_jax.batch.group import Group, check_vocabulary
from rm_jax.batch.together import rows_by_prompt, unlabelled_group
from rm_jax.batch.tokens import Cut, cut_message
from rm_jax.data.dialogue import plain
from rm_jax.data.report import DataError, RowError
from rm_jax.data.requests import Asked, RowNumbers, read_row
from rm_jax.errors import InputError
from rm_jax.parallel.fingerprint import fingerprint_of
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.source import SHAPING, Source, open_source, read_json, save_folder
from rm_jax.reward.export import export
from rm_jax.reward.loaded import text_model_of
from rm_jax.reward.reference import LoadedReference, check_not_reference, saved_reference
from rm_jax.reward.score import (
  default_packing,
  pool_groups,
  score_groups,
  score_outputs,
  solution_scores,
  weigh_groups,
)
from rm_jax.reward.setup import TextModel, init_params, without_likelihood
from rm_jax.shaping.chain import Chain, Shaped, chain_of, declared
from rm_jax.shaping.stages import Responses, below_mean
from rm_jax.storage.remote import local
from rm_jax.workdir.folder import is_workdir
from rm_jax.workdir.load import load_run

log = logging.getLogger(__name__)


class RewardModel:
  """A text model with its parameters: scores a prompt and a response with a real number.

  >>> model = RewardModel.from_pretrained(folder)  # a workdir, a saved folder or a hub id
  >>> rows = [
  ...   {"prompt": "Name a fruit.", "response": "An apple."},
  ...   {"prompt": "Name a fruit.", "response": "No."},
  ... ]
  >>> scores = model.score(rows)
  >>> scores.shape, scores.dtype
  ((2,), dtype('float32'))
  >>> best = rows[scores.argmax()]["response"]

  Args:
    text_model: network, tokenizer and convention.
    params: nested dict of arrays on the mesh, as `text_model.network` takes it.
    mesh: the devices.
    reference: that an implicit reward is relative to; None where the model has none.
    shaping: the chain that makes shaped scores; None = there is none.

  Raises ValueError if the model or the arguments lack a reference that the other has.
  `from_pretrained` makes one from files.
  """

  def __init__(
    self,
    text_model: TextModel,
    params: dict,
    mesh: Mesh,
    reference: LoadedReference | None = None,
    shaping: Chain | None = None,
  ):
    if ("reference" in text_model.network.needs) != (reference is not None):
      raise ValueError(f"reference is {reference}; expected one where the network's head has it")
    self.text_model = text_model
    self.params = params
    self.mesh = mesh
    self.reference = reference
    self.shaping = shaping
    self._fits: tuple[Chain, dict] | None = None  # a chain, and parameters it was compared with

  @property
  def attributes(self) -> tuple[str, ...]:
    """Names of the attributes that the model rates, in order; () if it has none."""
    return self.text_model.network.head.attributes

  @classmethod
  def from_pretrained(
    cls,
    name: str | Path,
    *,
    dtype: str = "float32",
    max_length: int = 0,
    chat_template: str = "",
    eos: str = "",
    steps: str = "",
    verdict: Sequence[str] = (),
    question: str = "",
    shaping: str = "",
    reference: str | Path = "",
    mesh: Mapping[str, int] | None = None,
  ) -> "RewardModel":
    """Loads a model that has a reward head, or makes one of a language model's own verdict.

    Args:
      name: a run's workdir (its best checkpoint is read if it keeps one, else its latest), a folder
        saved by `save_pretrained`, or a Hugging Face sequence-classification folder or hub id. If
        its reward is implicit, the reference that it names is loaded too. A classifier of another
        library is read where transformers reads it, and gets no EOS unless `eos` says so.
      dtype: compute dtype of the backbone; the head computes in float32.
      max_length: most tokens of a prompt + response; 0 = the saved limit, else the architecture's.
      chat_template: renders messages: 'hh', Jinja text, or a file of it; '' = the model's own.
      eos: 'append' adds EOS to every text that does not end in it, 'none' never adds it; '' = as
        saved, else 'none'. TRL's RewardTrainer appends EOS to strings and not to messages, and its
        checkpoint does not record which of them it was trained on (see docs/exports.md).
      steps: how the scores of a solution's steps are read: 'own', 'min' or 'product', see
        `losses.process.so_far`; '' = as saved, else 'own'. A model that was trained on labels that
        stop at the first error is read with 'product' where every step after one counts as wrong.
      verdict: two words, such as ('Yes', 'No'), by which a language model without a reward head
        answers whether a response is good; the reward is the difference of their logits (see
        `reward.verdict`).
      question: what it is asked, with `verdict`; '' = whether the answer is good.
      shaping: declares the chain of shaped scores, with all its numbers, as in 'clip(low=-2,
        high=2), tanh' (see `shaping.chain.declared`); '' = as saved with the model, if it was.
      reference: where an implicit reward's reference is now; '' = where the model says.
      mesh: {'data', 'fsdp', 'tensor'} -> number of devices, 1 where it is not said; by default all
        are on 'data'.

    Raises:
      OSError: what is at a URL cannot be read; FileNotFoundError if `name` is not found.
      ValueError: it has no reward head, or one of several outputs that are neither members nor
        attributes; or the reference of its implicit reward is not there or has another fingerprint,
        or `reference` is given and it has none; or its tensors do not fit the architecture, or
        another of its files cannot be used; or `verdict` is given and it has a head; or
        `chat_template`, `eos`, `steps`, `verdict`, `shaping` or `mesh` is not one of the above.
      CheckpointError: it is a workdir and no checkpoint in it can be read, or fits the backbone.
    """
    devices = make_mesh(mesh or {"data": -1, "fsdp": 1, "tensor": 1})
    name = local(name) if isinstance(name, str) else name
    path = Path(name)
    trained = is_workdir(path)
    source = open_source(str(path / "model" if trained else name))
    text_model = text_model_of(
      source,
      dtype=dtype,
      max_length=max_length,
      chat_template=chat_template,
      eos=eos,
      steps=steps,
      words=verdict,
      question=question,
    )
    chain = declared(shaping, "shaping (--shaping)") if shaping else _saved_chain(source)
    loaded = saved_reference(text_model, devices, reference)
    if not trained:
      flat = init_params(text_model, devices, jax.random.key(0), training=False)
      return cls(text_model, unflatten_dict(flat, sep="/"), devices, loaded, chain)
    return cls(*load_run(path, text_model, devices), devices, loaded, chain)

  def score(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    lower: float = 0.0,
    shaped: bool = False,
    aggregate: str = "min",
    progress: bool | str = False,
    origins: Sequence[str] = (),
    cuts: list[Cut] | None = None,
  ) -> np.ndarray:
    """Rewards of rows, in their order: float32 [N].

    Of a row that is longer than the model's maximum length the oldest turns or tokens of its prompt
    are left out, and then its response's first tokens; one warning a call says of how many rows.

    Args:
      rows: each with `prompt` and `response` (or `completion`): strings, or message lists, which
        are rendered by the chat template. Or a solution in steps, as `score_steps` takes it.
      lower: for an ensemble: the reward is the members' mean minus `lower` standard deviations, a
        conservative reward to optimise against (Coste et al. 2023, "Reward Model Ensembles Help
        Mitigate Overoptimization").
      shaped: whether to apply the model's chain of shaping (`shaping`; docs/scoring.md), which has
        `lower` as a stage.
      aggregate: how the scores of a solution's steps become its score: 'min', 'product', 'mean' or
        'last' (see `losses.process.aggregate`; 'product' is a log-probability, the others are
        log-odds).
      progress: whether to show a progress bar; a string is its label.
      origins: names of the rows in error messages, N strings; by default their numbers.
      cuts: a list to extend by each row's number of cut tokens, the response's included (see
        `batch.tokens.Cut`); no warning is logged then.

    Raises:
      DataError: a row cannot be scored; the message names it.
      ValueError: `lower` is set and the model is not an ensemble, or `shaped` is, too; `shaped` is
        set and the model has no chain; `aggregate` is unknown; a score is not finite (of a shaped
        one the message names the stage); there are messages and no chat template; or the tokenizer
        gives an id outside the model's vocabulary.
    """
    options = dict(aggregate=aggregate, progress=progress, origins=origins, cuts=cuts)
    if shaped and lower:
      raise ValueError(
        f"lower is {lower} and shaped is true; expected lower as a stage of the chain"
      )
    if shaped:
      return self._shaped(list(rows), **options).scores
    scores_NM = self.score_members(rows, **options)
    return below_mean(scores_NM, lower) if lower else scores_NM.mean(axis=1)

  def explain(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    aggregate: str = "min",
    progress: bool | str = False,
    origins: Sequence[str] = (),
    cuts: list[Cut] | None = None,
  ) -> list[dict[str, Any]]:
    """How each row's shaped score came about, a dict for each row: see `Shaped.explained`.

    Arguments and errors are those of `score` with `shaped`, in whose chain `lower` is a stage.
    """
    options = dict(aggregate=aggregate, progress=progress, origins=origins, cuts=cuts)
    return self._shaped(list(rows), **options).explained()

  def _shaped(
    self, rows: Sequence[Mapping[str, Any]], *, origins: Sequence[str] = (), **options: Any
  ) -> Shaped:
    whose = self.text_model.source.path if self.text_model.source else "the model"
    if self.shaping is None:
      raise InputError(
        f"{whose} has no chain of shaping: expected {SHAPING} in it, which experiments.audit "
        "--calibrate --shape='normalise, clip' makes, or a chain by shaping= of from_pretrained"
      )
    fitted = self.shaping.fitted
    seen = self._fits and self._fits[0] is self.shaping and self._fits[1] is self.params
    self._fits = self.shaping, self.params
    saved = fitted.weights if fitted and not seen else ""
    if saved and self._fingerprint(saved) != saved:
      log.warning(
        "%s: THE SHAPED SCORES MAY BE WRONG: their chain was fitted with other weights, on %s; "
        "experiments.audit --calibrate --shape fits it again",
        whose,
        fitted.data,
      )
    log.info("%s: shaped by %s: %s", whose, self.shaping.digest, self.shaping)
    scores_NM = self.score_members(rows, origins=origins, **options)
    origins = origins or RowNumbers()
    asked = [read_row(row, origins[i]) for i, row in enumerate(rows)]
    texts = [plain(a.response) if a.steps is None else "".join(a.steps) for a in asked]
    return self.shaping.shape(Responses(scores_NM, texts), origins)

  @property
  def weights(self) -> str:
    """The parameters' fingerprint, by which a chain of shaping knows what it was fitted for."""
    return self._fingerprint()

  def _fingerprint(self, saved: str = "") -> str:
    return fingerprint_of(flatten_dict(self.params, sep="/"), saved)

  def score_members(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    aggregate: str = "min",
    progress: bool | str = False,
    origins: Sequence[str] = (),
    cuts: list[Cut] | None = None,
  ) -> np.ndarray:
    """Rewards by each member of an ensemble: float32 [N, M]; M = 1 if the model is no ensemble.

    Arguments and errors are those of `score`, which has `lower` besides.
    """
    origins = origins or RowNumbers()
    asked = [read_row(row, origins[i]) for i, row in enumerate(rows)]
    head = self.text_model.network.head
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
    """Ratings on each attribute: float32 [N, A], in the order of `attributes`.

    Args:
      rows: each with `prompt` and `response` (or `completion`), as `score` takes them.
      progress: whether to show a progress bar.

    Raises:
      DataError: a row cannot be scored; the message names its number.
      ValueError: the model has no attributes, or as `score`.
    """
    asked = self._asked_attributes(rows)
    marks = self._score_marks(asked, True, progress)
    return np.asarray(marks, np.float32).reshape(len(asked), len(self.attributes))

  def attribute_weights(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> np.ndarray:
    """The weight of each attribute in each row's reward: float32 [N, A].

    The reward of a row is the sum of its attributes' scores by these weights. They are the same in
    every row, or with a gate (`model.gate`) a function of the row's prompt, with sum 1. Arguments
    and errors are those of `score_attributes`, of weights that are not finite in place of scores.
    """
    asked = self._asked_attributes(rows)
    chunks, groups = self._groups(asked)
    out = np.empty((len(asked), len(self.attributes)), np.float32)
    found = self._run(weigh_groups, groups, "weigh" if progress else "")
    self._check_finite(found, chunks, asked, RowNumbers(), "weight")
    for chunk, weights_AK in zip(chunks, found, strict=True):
      out[chunk] = weights_AK.T
    return out

  def _asked_attributes(self, rows: Iterable[Mapping[str, Any]]) -> list[Asked]:
    if not self.attributes:
      raise ValueError("the model has no attributes; expected one that was trained with some")
    return [read_row(row, i, "response") for i, row in enumerate(rows)]

  def score_steps(
    self,
    rows: Iterable[Mapping[str, Any]],
    *,
    progress: bool = False,
    origins: Sequence[str] = (),
  ) -> list[np.ndarray]:
    """Scores of the steps of solutions: for each row float32 [number of steps], in order.

    Trained on labels of steps they are log-odds: of the solution up to and including the step, or
    of the step itself, as the labels and `steps` of `from_pretrained` have it.

    Args:
      rows: each with `prompt`, a string or messages, and `completions` (or `steps`): the texts of
        the steps, a list of strings.
      progress: whether to show a progress bar.
      origins: as `score`'s.

    Raises:
      DataError: a row is not of this form or too long for the model (the message names its number),
        or the model is an encoder, which cannot score steps.
      ValueError: as `score`.
    """
    origins = origins or RowNumbers()
    asked = [read_row(row, origins[i], "steps") for i, row in enumerate(rows)]
    return [scores_OS[0] for scores_OS in self._score_marks(asked, False, progress, origins)]

  def pooled_and_scores(
    self, rows: Iterable[Mapping[str, Any]], *, progress: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """The pooled hidden state of each response, and its scores.

    Args:
      rows: each with `prompt` and `response` (or `completion`), as `score` takes them.
      progress: whether to show a progress bar.

    Returns:
      float32 [N, D], the hidden states that the head maps to scores, or with an implicit reward
      those at the marks; and float32 [N, M], the scores as `score_members` gives them.

    Raises:
      DataError: a row cannot be scored; the message names its number.
      ValueError: as `score`.
    """
    asked = [read_row(row, i, "response") for i, row in enumerate(rows)]
    chunks, groups = self._groups(asked)
    head = self.text_model.network.head
    pooled_ND = np.empty((len(asked), self.text_model.network.backbone.width), np.float32)
    scores_NM = np.empty((len(asked), head.outputs if head.ensemble else 1), np.float32)
    found = self._run(pool_groups, groups, "read" if progress else "", outputs=head.ensemble)
    self._check_finite([scores_MK for _, scores_MK in found], chunks, asked, RowNumbers())
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
    cuts: list[Cut] | None = None,
  ) -> list[np.ndarray]:
    """Scores of each row's marks (its response, or its steps), in the order of the rows.

    Args:
      asked: N rows.
      outputs: whether to return each output of the head (a member's, an attribute's) instead of the
        reward.
      progress: as `score`'s, and so are `origins` and `cuts`.

    Returns:
      N arrays float32 [O, marks]: O = 1 reward, or with `outputs` the head's outputs.
    """
    origins = origins or RowNumbers()
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
    cuts: list[Cut] | None = None,
  ) -> tuple[list[list[int]], list[Group]]:
    """Tokenises rows and puts those with the same prompt into groups, see `rows_by_prompt`.

    Args:
      asked: N rows.
      origins: as `score`'s.
      cuts: as `score`'s.

    Returns:
      (for each group the indices of its rows; the groups).

    Raises:
      ValueError: as `score`, where a row cannot be tokenised.
    """
    origins = origins or RowNumbers()
    encoder = self.text_model.text_encoder()
    whole = iter(encoder.sequences([(a.prompt, a.response) for a in asked if a.steps is None]))
    tokens = []
    for i, one in enumerate(asked):
      try:
        if one.steps is None:
          tokens.append(next(whole))
        else:
          tokens.append(encoder.step_sequence(one.prompt, one.steps))
      except InputError as error:
        raise DataError(f"{origins[i]}: {error}") from error
      if isinstance(tokens[-1], RowError):
        raise DataError(f"{origins[i]}: {tokens[-1].reason}: {tokens[-1].detail}")
      if self.text_model.network.implicit and without_likelihood(unlabelled_group(tokens[-1:])):
        raise DataError(
          f"{origins[i]}: no_likelihood: the response has no token of its own that a language "
          "model would predict; expected some text behind the prompt"
        )
    cut = [one.cut for one in tokens]
    if cuts is not None:
      cuts += cut
    elif any(cut):
      log.warning(cut_message(cut, encoder.convention.limits))
    chunks = rows_by_prompt(
      [a.prompt for a in asked],
      tokens,
      self.text_model.network.causal,
      cut=encoder.convention.max_prompt_length > 0,
    )
    return chunks, [unlabelled_group([tokens[i] for i in chunk]) for chunk in chunks]

  def score_groups(
    self, groups: Sequence[Group], *, outputs: bool = False, progress: str = ""
  ) -> list[np.ndarray]:
    """Scores of groups that are tokenised already: see `reward.score.score_groups`.

    A caller that has `Example`s makes their groups by `text_model.tokenise`.

    Raises:
      ValueError: a score is not finite, or a token id is not in the model's vocabulary.
    """
    scores = self._run(score_groups, groups, progress, outputs=outputs)
    for i, one in enumerate(scores):
      if not np.isfinite(one).all():
        self._raise_not_finite(f"group {i}", one)
    return scores

  def score_outputs(
    self, groups: Sequence[Group], *, progress: str = ""
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rewards of groups that are tokenised already, and the outputs that they are made of.

    See `reward.score.score_outputs`. Raises ValueError as `score_groups`.
    """
    both = self._run(score_outputs, groups, progress)
    for i, (rewards, outputs) in enumerate(both):
      for one in (rewards, outputs):
        if not np.isfinite(one).all():
          self._raise_not_finite(f"group {i}", one)
    return both

  def _check_finite(
    self,
    scores: Sequence[np.ndarray],
    chunks: Sequence[list[int]],
    asked: Sequence[Asked],
    origins: Sequence[str],
    what: str = "score",
  ) -> None:
    """Raises ValueError if a score ('weight': an attribute's weight) is not finite.

    It names the row that causes it, if one does.
    """
    again = weigh_groups if what == "weight" else functools.partial(score_groups, outputs=True)
    bad = [i for i, one in enumerate(scores) if not np.isfinite(one).all()]
    # Rows that are packed together can infect one another with NaN, so that each row of a bad group
    # is scored again by itself to find the cause.
    for n in (n for i in bad for n in chunks[i]):
      _, groups = self._groups([asked[n]], [origins[n]], [])
      (alone,) = self._run(again, groups, "")
      if not np.isfinite(alone).all():
        self._raise_not_finite(origins[n], alone, what)
    if bad:
      self._raise_not_finite(origins[chunks[bad[0]][0]], scores[bad[0]], what)

  def _raise_not_finite(self, origin: str, scores: np.ndarray, what: str = "score") -> None:
    bad = scores[~np.isfinite(scores)][0]
    whose = self.text_model.source.path if self.text_model.source else "the model"
    raise InputError(
      f"{origin}: its {what} is {bad}; expected a finite number: the weights of "
      f"{whose} are damaged, or overflow in {self.text_model.network.dtype}"
    )

  def _run(self, function: Callable, groups: Sequence[Group], progress: str, **options) -> list:
    """Calls a function of `reward.score` with this model. Raises as `check_vocabulary`."""
    check_vocabulary(groups, self.text_model.network.backbone.vocab)
    if self.reference:
      label = progress and f"{progress}, reference"
      options["references"] = self.reference.likelihoods(groups, self.mesh, progress=label)
    return function(
      self.text_model.network,
      self.params,
      groups,
      mesh=self.mesh,
      packing=default_packing(self.mesh, causal=self.text_model.network.causal),
      progress=progress,
      **options,
    )

  def save_pretrained(self, path: str | Path, *, mix: Mapping[str, float] | None = None) -> None:
    """Writes a Hugging Face sequence-classification folder: safetensors, float32, and our record.

    Of a model whose reward is implicit it is a language model's, for AutoModelForCausalLM; the
    record has β, and the name and the fingerprint of the reference, which is not written.

    transformers' AutoModelForSequenceClassification loads it, and its tokenizer adds EOS where the
    model was trained with one. `from_pretrained` loads it too, and reads from the record
    (rm_jax.json) how text becomes tokens. The safetensors file has one output: of an ensemble the
    mean of its members, of attributes their mix; the record keeps each one's own weights. A warning
    is logged for each of `Export.limits`; docs/exports.md says how to call the model then. The
    model's chain of shaping, if it has one, is written too; not with `mix`, by which its scores are
    others.

    Args:
      path: the folder, which is made.
      mix: attribute -> its weight in the saved model's reward; None = the model's own mix.

    Raises:
      ValueError: the attributes' weights depend on the prompt (`model.gate`), for which
        transformers has no place, and `mix` is None; or `mix` does not weigh the attributes.
      ValueError: `path` is that of the reference of an implicit reward.
      OSError, ValueError: as `pretrained.source.save_folder`.
    """
    source = self.text_model.source
    check_not_reference(path, self.text_model.reference)
    made = export(
      self.text_model,
      self.params,
      kinds=source.record.get("kinds", ()) if source else (),
      mix=mix,
      shaped=self.shaping is not None and mix is None,
    )
    if self.shaping and mix is not None:
      log.warning("%s: without the chain of shaping, whose numbers are of another mix", path)
    for limit in made.limits:
      log.warning("%s: %s", path, limit)
    save_folder(
      Path(path),
      config=made.config,
      tokenizer=made.tokenizer,
      record=made.record,
      tensors=made.tensors.items(),
      shaping=self.shaping.record() if self.shaping and mix is None else None,
    )


def _saved_chain(source: Source) -> Chain | None:
  """The chain that is saved with a model. Raises InputError where it cannot be used."""
  path = source.path / SHAPING
  # A dangling link is read too, which raises: without its chain a model gives other shaped scores.
  if path.exists() or path.is_symlink():
    return chain_of(read_json(path), str(path))
  return None
