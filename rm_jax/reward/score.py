"""Running a network over many groups: scores, and the activations below the first trained layer.

And of solutions in steps: one score each.
"""

import functools
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
from rm_jax.models.network import Network
from rm_jax.parallel.hosts import gather, is_main
from rm_jax.parallel.mesh import place_batch, rows_multiple
from rm_jax.types import Batch

log = logging.getLogger(__name__)

Shapes = tuple[tuple[Shape, ...], ...]

# Groups that are packed together: enough to fill rows well, few enough to begin at once.
_CHUNK = 2048


@functools.lru_cache(maxsize=8)
def _jit(network: Network, what: str) -> Callable[[dict, Batch], Any]:
  return jax.jit(getattr(network, what))


def run_groups(
  network: Network,
  what: str,
  params: dict,
  groups: Sequence[Group],
  *,
  mesh: Mesh,
  packing: Packing,
  shapes: Shapes | None = None,
  features: Sequence[np.ndarray] | None = None,
  progress: str = "",
) -> Iterator[tuple[Any, np.ndarray, Batch]]:
  """Runs one of a network's functions over groups, packed; yields micro-batches as they come.

  Args:
    network: see `models.network.Network`.
    what: 'score', 'read' or 'features'.
    params: nested dict, on the mesh.
    groups: of any length.
    mesh: the devices.
    packing: see `batch.layout.Packing`.
    shapes: from `batch.layout.plan`; default, shapes that do not depend on the data.
    features: as `batch.pack.assemble`'s.
    progress: label of a progress bar; '' shows none.

  Yields:
    (output, its arrays numpy's; index [B, G] of the groups, -1 = none; the host's batch).
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

  # Scores do not depend on what was said of the responses.
  fields = optional_fields(groups) & {"token_type", "starts"}

  def prepare(micro):
    batch, index = assemble(micro, groups, packing=packing, fields=fields, features=features)
    return place_batch(batch, mesh), batch, index

  function = _jit(network, what)
  quiet = not (progress and is_main())
  with (
    tqdm(total=len(groups), desc=progress, disable=quiet, unit="group") as bar,
    jax.set_mesh(mesh),
  ):
    waiting = None  # one micro-batch in flight: the host reads while the device works
    for placed, batch, index in ahead(prepare, micros()):
      this = function(params, placed), index, batch
      if waiting is not None:
        yield gather(waiting[0]), *waiting[1:]
      waiting = this
      bar.update(int((index >= 0).sum()))
    yield gather(waiting[0]), *waiting[1:]


def score_groups(
  network: Network, params: dict, groups: Sequence[Group], *, outputs: bool = False, **options
) -> list:
  """Scores of each group's marks: a list of rewards, float32 [marks].

  Of a group whose feedback is on attributes each attribute's, [A, marks], as its labels have it.

  Args:
    outputs: instead of rewards what they are made of, [M, marks] or [A, marks], where that is more
      than one.
    options: as `run_groups`.
  """
  out: list[np.ndarray | None] = [None] * len(groups)
  for (rewards_BGK, scores), index_BG, _ in run_groups(network, "score", params, groups, **options):
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      one = scores if outputs or groups[i].kind == "attributes" else rewards_BGK
      out[i] = one[..., b, g, : len(groups[i].marks)]
  return out


def read_groups(
  network: Network, params: dict, groups: Sequence[Group], *, outputs: bool = False, **options
) -> list[tuple[np.ndarray, np.ndarray]]:
  """What the head reads at each group's marks, float32 [marks, D], and its scores.

  Arguments and scores as of `score_groups`.
  """
  out: list[Any] = [None] * len(groups)
  run = run_groups(network, "read", params, groups, **options)
  for (pooled_BGKD, rewards_BGK, scores), index_BG, _ in run:
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      i = index_BG[b, g]
      one, marks = scores if outputs else rewards_BGK, len(groups[i].marks)
      out[i] = pooled_BGKD[b, g, :marks], one[..., b, g, :marks]
  return out


def _power_of_two(n: int) -> int:
  """The least that is not under n >= 1."""
  return 1 << (n - 1).bit_length()


@functools.partial(jax.jit, static_argnames="how")
def _aggregate(scores_NK: jax.Array, where_NK: jax.Array, how: str) -> jax.Array:
  whose = jnp.zeros(where_NK.shape, jnp.int32)
  return aggregate(scores_NK, where=where_NK, response=whose, num_responses=1, how=how)[0][:, 0]


def solution_scores(steps: Sequence[np.ndarray], how: str = "min") -> np.ndarray:
  """One score a solution, float32 [N], from those of its steps.

  Args:
    steps: N arrays float [number of steps], log-odds; none of them empty.
    how: 'min', 'product', 'mean' or 'last', as `losses.process.aggregate`. 'product' gives
      log-probabilities, the others log-odds.

  Raises:
    ValueError: another `how`.
  """
  if how not in HOW:
    raise ValueError(f"aggregate is {how!r}; expected one of {', '.join(HOW)}")
  out = np.zeros(len(steps), np.float32)
  # In chunks of few shapes: a solution of many steps does not pad all the others.
  order = np.argsort([len(s) for s in steps], kind="stable")
  for start in range(0, len(steps), 256):
    chunk = order[start : start + 256]
    shape = _power_of_two(len(chunk)), _power_of_two(len(steps[chunk[-1]]))
    scores_NK, where_NK = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for n, i in enumerate(chunk):
      scores_NK[n, : len(steps[i])], where_NK[n, : len(steps[i])] = steps[i], True
    out[chunk] = np.asarray(_aggregate(scores_NK, where_NK, how))[: len(chunk)]
  return out


def make_features(network: Network, params: dict, groups: Sequence[Group], **options) -> list:
  """Activations that enter the first trained layer, a list of float [length, D] a group."""
  out: list[np.ndarray | None] = [None] * len(groups)
  for h_BTD, index_BG, batch in run_groups(network, "features", params, groups, **options):
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      out[index_BG[b, g]] = h_BTD[b][np.asarray(batch.group[b]) == g + 1]
  return out


def keep_features(
  network: Network,
  params: dict,
  sets: Mapping[str, tuple[Sequence[Group], Shapes | None]],
  *,
  mesh: Mesh,
  packing: Packing,
  limit_gib: float,
) -> dict[str, list]:
  """Runs what is frozen once over all data: name -> `make_features` of each set.

  Args:
    sets: name -> (groups, their shapes).
    limit_gib: GiB of host memory that the result may take; {} and a warning where it would be more.
  """
  columns = sum(g.columns(packing.share) for groups, _ in sets.values() for g in groups)
  gib = columns * network.backbone.width * 4 / 2**30
  if gib > limit_gib:
    log.warning(
      "frozen activations would take %.1f GiB, over model.keep_gib=%s: made anew at every step",
      gib,
      limit_gib,
    )
    return {}
  options = dict(mesh=mesh, packing=packing)
  return {
    name: make_features(
      network, params, groups, shapes=shapes, progress=f"frozen layers, {name}", **options
    )
    for name, (groups, shapes) in sets.items()
  }


def default_packing(mesh: Mesh, *, causal: bool) -> Packing:
  """Packing for scoring on a mesh: shared prompts for decoders."""
  return Packing(share=causal, multiple=rows_multiple(mesh))
