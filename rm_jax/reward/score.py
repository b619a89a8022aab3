"""Runs a network over many groups: their scores, pooled hidden states and frozen activations."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from rm_jax.batch.group import Group
from rm_jax.batch.iterate import ahead
from rm_jax.batch.layout import Packing, Shape, need, pack, standing
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.losses.process import HOW, aggregate
from rm_jax.models.config import HeadConfig
from rm_jax.models.network import Network
from rm_jax.parallel.hosts import gather, is_main
from rm_jax.parallel.mesh import place_batch, rows_multiple
from rm_jax.types import Batch

log = logging.getLogger(__name__)

Shapes = tuple[tuple[Shape, ...], ...]

# Groups that are packed into rows at a time: enough to leave little padding, few enough that the
# first micro-batch is ready soon.
_CHUNK = 2048


@functools.lru_cache(maxsize=8)
def _jit(network: Network, function: str) -> Callable[[dict, Batch], Any]:
  return jax.jit(getattr(network, function))


def run_groups(
  network: Network,
  function: str,
  params: dict,
  groups: Sequence[Group],
  *,
  mesh: Mesh,
  packing: Packing,
  shapes: Shapes | None = None,
  features: Sequence[np.ndarray] | None = None,
  references: Sequence[np.ndarray] | None = None,
  progress: str = "",
) -> Iterator[tuple[Any, np.ndarray, Batch]]:
  """Packs groups into micro-batches and runs one of a network's functions over each.

  Args:
    network: see `models.network.Network`.
    function: name of its method: 'score', 'weights', 'read', 'log_likelihood' or 'features'.
    params: nested dict of arrays on the mesh.
    groups: any number of them.
    mesh: the devices.
    packing: see `batch.layout.Packing`.
    shapes: of the micro-batches, from `batch.layout.plan`; by default a fixed ladder of shapes, so
      that calls with other data reuse the compiled programs.
    features, references: as `batch.pack.assemble` takes them.
    progress: label of a progress bar; '' shows none.

  Yields:
    for each micro-batch (the output as numpy arrays; int [B, G], the index of each group in
    `groups`, -1 = padding; the micro-batch on the host).

  Raises:
    ValueError: the network needs `references` and there are none.
  """
  needs = [need(g, packing) for g in groups]
  if not groups:
    return
  if shapes is None:
    shapes = standing(
      max(n.columns for n in needs), _power_of_two(max(len(g.marks) for g in groups)), packing
    )

  def micros():
    for start in range(0, len(groups), _CHUNK):
      yield from pack(range(start, min(start + _CHUNK, len(groups))), needs, shapes)

  # Optional arrays that do not change a score, such as margins, are left out, so that the same
  # compiled programs serve all data.
  fields = optional_fields(groups) & {"token_type", "starts"}
  if function != "features":  # which no head reads
    fields |= network.needs

  def prepare(micro):
    batch, index = assemble(
      micro, groups, packing=packing, fields=fields, features=features, references=references
    )
    return place_batch(batch, mesh), batch, index

  run = _jit(network, function)
  quiet = not (progress and is_main())
  with (
    tqdm(total=len(groups), desc=progress, disable=quiet, unit="group") as bar,
    jax.set_mesh(mesh),
  ):
    waiting = None  # the last micro-batch: its output is fetched while the next one is computed
    for placed, batch, index in ahead(prepare, micros()):
      this = run(params, placed), index, batch
      if waiting is not None:
        yield gather(waiting[0]), *waiting[1:]
      waiting = this
      bar.update(int((index >= 0).sum()))
    yield gather(waiting[0]), *waiting[1:]


def score_groups(
  network: Network, params: dict, groups: Sequence[Group], *, outputs: bool = False, **options
) -> list:
  """Scores of each group's marks.

  Args:
    network: see `models.network.Network`.
    params: nested dict of arrays on the mesh.
    groups: N groups.
    outputs: whether to return the outputs of the head (M members, A attributes) and not the reward
      that is made of them.
    options: as `run_groups` takes them.

  Returns:
    N arrays: rewards, float32 [marks]; or outputs, float32 [O, marks], O as in `score_outputs`. A
    group whose feedback is on attributes always gets outputs, since each attribute is rated.
  """
  both = score_outputs(network, params, groups, **options)
  return [
    of_outputs if outputs or group.kind == "attributes" else rewards
    for group, (rewards, of_outputs) in zip(groups, both, strict=True)
  ]


def score_outputs(
  network: Network, params: dict, groups: Sequence[Group], **options
) -> list[tuple[np.ndarray, np.ndarray]]:
  """For each of N groups (rewards, float32 [marks]; the head's outputs, float32 [O, marks]).

  O is M members, A attributes, or 1; the log-weights of a gate are left out. Arguments are those of
  `score_groups` but for `outputs`.
  """
  out: list[Any] = [None] * len(groups)
  for (rewards_BGK, scores), index_BG, _ in run_groups(network, "score", params, groups, **options):
    scores_OBGK = _of_outputs(network, scores)
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      marks = len(groups[i].marks)
      out[i] = rewards_BGK[b, g, :marks], scores_OBGK[:, b, g, :marks]
  return out


def _of_outputs(network: Network, scores: np.ndarray) -> np.ndarray:
  """`Network.apply`'s scores as [O, B, G, K], O as in `score_outputs`."""
  return scores[: network.head.outputs] if scores.ndim == 4 else scores[None]


def weigh_groups(
  network: Network, params: dict, groups: Sequence[Group], **options
) -> list[np.ndarray]:
  """For each of N groups the weights of the attributes in its rewards, float32 [A, marks].

  Arguments are those of `score_groups` but for `outputs`, of a network with attributes.
  """
  out: list[Any] = [None] * len(groups)
  for weights_ABGK, index_BG, _ in run_groups(network, "weights", params, groups, **options):
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      out[i] = weights_ABGK[:, b, g, : len(groups[i].marks)]
  return out


def pool_groups(
  network: Network, params: dict, groups: Sequence[Group], *, outputs: bool = False, **options
) -> list[tuple[np.ndarray, np.ndarray]]:
  """For each of N groups (pooled hidden states at its marks, float32 [marks, D]; their scores).

  Arguments are those of `score_groups`. Scores are rewards, float32 [marks], or with `outputs` the
  head's outputs, float32 [O, marks], O as in `score_outputs`.
  """
  out: list[Any] = [None] * len(groups)
  run = run_groups(network, "read", params, groups, **options)
  for (pooled_BGKD, rewards_BGK, scores), index_BG, _ in run:
    shown = _of_outputs(network, scores) if outputs else rewards_BGK
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      marks = len(groups[i].marks)
      out[i] = pooled_BGKD[b, g, :marks], shown[..., b, g, :marks]
  return out


def _power_of_two(n: int) -> int:
  """The least power of two that is at least n, for n >= 1."""
  return 1 << (n - 1).bit_length()


@functools.partial(jax.jit, static_argnames="how")
def _aggregate(scores_NK: jax.Array, where_NK: jax.Array, how: str) -> jax.Array:
  whose = jnp.zeros(where_NK.shape, jnp.int32)
  return aggregate(scores_NK, where=where_NK, response=whose, num_responses=1, how=how)[0][:, 0]


def solution_scores(steps: Sequence[np.ndarray], how: str = "min") -> np.ndarray:
  """One score for each solution, float32 [N], from the scores of its steps.

  Args:
    steps: N arrays float [number of steps], log-odds; none of them empty.
    how: 'min', 'product', 'mean' or 'last', see `losses.process.aggregate`. 'product' gives
      log-probabilities, the others log-odds.

  Raises:
    ValueError: `how` is unknown.
  """
  if how not in HOW:
    raise ValueError(f"aggregate is {how!r}; expected one of {', '.join(HOW)}")
  out = np.zeros(len(steps), np.float32)
  # Sorted by length and in chunks whose shapes are powers of two: little padding, few compilations.
  order = np.argsort([len(s) for s in steps], kind="stable")
  for start in range(0, len(steps), 256):
    chunk = order[start : start + 256]
    shape = _power_of_two(len(chunk)), _power_of_two(len(steps[chunk[-1]]))
    scores_NK, where_NK = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for n, i in enumerate(chunk):
      scores_NK[n, : len(steps[i])], where_NK[n, : len(steps[i])] = steps[i], True
    out[chunk] = np.asarray(_aggregate(scores_NK, where_NK, how))[: len(chunk)]
  return out


def likelihoods_of(
  network: Network, params: dict, groups: Sequence[Group], **options
) -> list[np.ndarray]:
  """For each of N groups the log-likelihoods up to its marks, float32 [marks].

  They are what `references` of the other functions are, where the network is a reference's.
  Arguments are those of `run_groups`, of a network whose reward is implicit.
  """
  alone = dataclasses.replace(network, head=dataclasses.replace(network.head, reference=False))
  out: list[Any] = [None] * len(groups)
  for value_BGK, index_BG, _ in run_groups(alone, "log_likelihood", params, groups, **options):
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      out[i] = value_BGK[b, g, : len(groups[i].marks)]
  return out


def make_features(network: Network, params: dict, groups: Sequence[Group], **options) -> list:
  """The hidden states that enter the first trained layer: for each group float [columns, D].

  Arguments are those of `run_groups`.
  """
  out: list[np.ndarray | None] = [None] * len(groups)
  for h_BTD, index_BG, batch in run_groups(network, "features", params, groups, **options):
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      out[index_BG[b, g]] = h_BTD[b][np.asarray(batch.group[b]) == g + 1]
  return out


class KeptFeatures:
  """The frozen layers' output over data sets, so that a step need not run them again.

  The last output for each set stays here, for another run in the same process that would compute
  the same one.
  """

  def __init__(self):
    self._kept: dict[str, tuple[Any, list]] = {}  # name of a set -> what it is of, and the output

  def get(
    self,
    network: Network,
    params: dict,
    sets: Mapping[str, tuple[Sequence[Group], Shapes | None]],
    *,
    frozen: Any,
    mesh: Mesh,
    packing: Packing,
    limit_gib: float,
  ) -> dict[str, list]:
    """The output for these data sets; what is kept of the last call is not computed again.

    Args:
      network: with frozen layers.
      params: nested dict of arrays on the mesh.
      sets: name -> (groups, the shapes of their micro-batches).
      frozen: checksums of the frozen parameters.
      mesh: the devices.
      packing: see `batch.layout.Packing`.
      limit_gib: most GiB of host memory that the result may take, counted as float32.

    Returns:
      name -> `make_features` of the set; {}, with a warning, if that would exceed the limit.
    """
    columns = sum(g.columns(packing.share) for groups, _ in sets.values() for g in groups)
    gib = columns * network.backbone.width * 4 / 2**30
    if gib > limit_gib:
      log.warning(
        "frozen activations would take %.1f GiB, over model.keep_gib=%s: computed at every step",
        gib,
        limit_gib,
      )
      return {}
    whole = {"head": HeadConfig(), "remat": "none", "lora": None, "gate_trains": 0.0}
    layers = dataclasses.replace(network, **whole)
    # Their shapes have to be equal, too: in other micro-batches activations are rounded otherwise.
    of = {
      name: (layers, frozen, _token_digest(groups), shapes, mesh, packing)
      for name, (groups, shapes) in sets.items()
    }
    # Before anything is computed, so that the memory of what is not used again is free.
    self._kept = {name: kept for name, kept in self._kept.items() if kept[0] == of.get(name)}
    for name, (groups, shapes) in sets.items():
      if name in self._kept:
        log.info("frozen layers, %s: the output of the run before", name)
        continue
      options = dict(mesh=mesh, packing=packing, shapes=shapes, progress=f"frozen layers, {name}")
      self._kept[name] = of[name], make_features(network, params, groups, **options)
    return {name: self._kept[name][1] for name in sets}


def _token_digest(groups: Sequence[Group]) -> str:
  """A hash of all that frozen layers see of groups and that decides their places in micro-batches.

  Feedback, objectives and sources are no part of it.
  """
  digest = hashlib.blake2b(digest_size=12)
  for group in groups:
    parts = [*group.ids, *(group.token_type or ())]
    digest.update(repr((group.shared, len(group.marks), [len(x) for x in parts])).encode())
    for part in parts:
      digest.update(np.ascontiguousarray(part).tobytes())
  return digest.hexdigest()


def default_packing(mesh: Mesh, *, causal: bool) -> Packing:
  """Packing for scoring on a mesh; only decoders can share a prompt."""
  return Packing(share=causal, multiple=rows_multiple(mesh))
