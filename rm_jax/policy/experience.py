"""A rollout's rewards as advantages, and its arrays laid out as the rows of tokens that train.

Shape letters: P prompts, S samples of each, M tokens of a sample; B rows, T columns of a row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, Shape, need, pack, standing
from rm_jax.batch.pack import assemble
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import rows_multiple
from rm_jax.policy import advantages as adv
from rm_jax.policy.kl import check_estimator, estimate
from rm_jax.policy.rollout import Rollout, groups_of
from rm_jax.types import Batch

ADVANTAGES = ("gae", "group", "leave_one_out")


@dataclasses.dataclass(frozen=True)
class Credit:
  """How rewards become advantages.

  Attributes:
    advantages: 'gae', by a critic, of each token; or of each response, over the others to its
      prompt: 'group' (`advantages.group_relative`) or 'leave_one_out'.
    estimator: of the divergence that is taken from the rewards (`kl.estimate`); '' = none is.
    gamma, lam: of 'gae'.
    whiten: whether the advantages of 'gae' are whitened over the rollout.
    scale: whether those of 'group' are divided by the standard deviation.

  Raises InputError for another name.
  """

  advantages: str
  estimator: str = ""
  gamma: float = 1.0
  lam: float = 0.95
  whiten: bool = True
  scale: bool = True

  def __post_init__(self):
    if self.advantages not in ADVANTAGES:
      raise InputError(
        f"advantages is {self.advantages!r}; expected one of {', '.join(ADVANTAGES)}"
      )
    if self.estimator:
      check_estimator(self.estimator)


@dataclasses.dataclass(frozen=True)
class Experience:
  """A rollout, ready to be trained on.

  Attributes:
    groups: P groups with S responses each, see `rollout.groups_of`.
    arrays: name -> numpy array [P, S, M], 0 where a token does not count: `where` (bool), `length`
      (int32, tokens of the token's response), and float32 `old_logp`, `advantages`, and, where
      they are known, `reference` (its log-probabilities) and the critic's `old_values`, `targets`.
    kl: float32 [P, S], the divergence of each response from the reference: the sum of k1 over its
      tokens; NaN without a reference.
    returns: float32 [P, S], the reward of each response, those of its steps and the penalty of the
      divergence included.
  """

  groups: list[Group]
  arrays: dict[str, np.ndarray]
  kl: np.ndarray
  returns: np.ndarray


@functools.partial(jax.jit, static_argnames="credit")
def _credited(credit, final_PS, process_PSM, logp_PSM, reference_PSM, values_PSM, where_PSM, beta):
  """(advantages [P, S, M], targets of the critic or None, returns [P, S])."""
  if credit.estimator:
    kl_PSM = estimate(logp_PSM, reference_PSM, where=where_PSM, estimator=credit.estimator)
  else:
    kl_PSM = jnp.zeros(where_PSM.shape, jnp.float32)
  rewards_PSM = adv.token_rewards(
    final_PS, kl_PSM, where=where_PSM, coefficient=beta, process=process_PSM
  )
  returns_PS = jnp.sum(rewards_PSM, axis=-1)
  if credit.advantages == "gae":
    options = dict(where=where_PSM, gamma=credit.gamma, lam=credit.lam)
    gae_PSM = adv.gae(rewards_PSM, values_PSM, **options)
    targets_PSM = jnp.where(where_PSM, gae_PSM + values_PSM, 0.0)
    white_PSM = adv.whiten(gae_PSM, where=where_PSM) if credit.whiten else gae_PSM
    return white_PSM, targets_PSM, returns_PS
  some_PS = jnp.any(where_PSM, axis=-1)
  if credit.advantages == "group":
    each_PS = adv.group_relative(returns_PS, where=some_PS, scale=credit.scale)
  else:
    each_PS = adv.leave_one_out(returns_PS, where=some_PS)
  return jnp.where(where_PSM, each_PS[..., None], 0.0), None, returns_PS


def make_experience(
  rollout: Rollout,
  credit: Credit,
  *,
  coefficient: float = 0.0,
  reference: np.ndarray | None = None,
  values: np.ndarray | None = None,
) -> Experience:
  """Advantages of a rollout's tokens.

  Args:
    rollout: whose rewards are finite, as those of `roll_out` are.
    credit: see `Credit`.
    coefficient: β, of the divergence that is taken from the rewards.
    reference: float32 [P, S, M], log-probabilities of the tokens under the reference.
    values: float32 [P, S, M], the critic's, of the state before each token.

  Raises:
    InputError: a reward is not finite; or each prompt has one sample, which there is nothing to
      compare with.
    ValueError: the credit needs values or a reference that is not given.
  """
  S = rollout.rewards.shape[1]
  if credit.advantages == "gae" and values is None:
    raise ValueError("advantages are 'gae', and values is None; expected the critic's")
  if credit.advantages != "gae" and S < 2:
    raise InputError(
      f"advantages are {credit.advantages!r}, and each prompt has {S} sample; expected 2 or more"
    )
  if credit.estimator and reference is None:
    raise ValueError(f"the estimator is {credit.estimator!r}, and reference is None")
  process = rollout.process
  total = rollout.rewards if process is None else rollout.rewards + process.sum(-1)
  names = [f"prompt {p}, sample {s}" for p, s in np.ndindex(total.shape)]
  adv.check_finite(total.reshape(-1), names)
  where, logp = rollout.where, rollout.samples.logp
  made = _credited(
    credit, rollout.rewards, process, logp, reference, values, where, np.float32(coefficient)
  )
  advantages, targets, returns = jax.device_get(made)
  length = np.broadcast_to(rollout.samples.length[..., None], where.shape)
  arrays = {
    "where": where,
    "length": np.where(where, length, 0).astype(np.int32),
    "old_logp": logp,
    "advantages": advantages,
    "reference": reference,
    "old_values": values,
    "targets": targets,
  }
  arrays = {name: x for name, x in arrays.items() if x is not None}
  kl = np.full(total.shape, np.nan, np.float32)
  if reference is not None:
    written = np.arange(where.shape[-1]) < rollout.samples.length[..., None]
    kl = np.where(written, logp - reference, 0).sum(-1, dtype=np.float32)
  return Experience(groups_of(rollout), arrays, kl, returns)


@dataclasses.dataclass(frozen=True)
class Rows:
  """A micro-batch on the host, and where each response token stands in it.

  Attributes:
    batch: numpy arrays, with `previous`.
    at: (rows, columns) of the response tokens.
    of: (prompt, sample, place) of the same tokens.
  """

  batch: Batch
  at: tuple[np.ndarray, np.ndarray]
  of: tuple[np.ndarray, np.ndarray, np.ndarray]

  def spread(self, x_PSM: np.ndarray) -> np.ndarray:
    """Values of the samples' tokens at their columns, [B, T]; 0 elsewhere."""
    x_BT = np.zeros(self.batch.tokens.shape, x_PSM.dtype)
    x_BT[self.at] = x_PSM[self.of]
    return x_BT

  def collect(self, x_BT: np.ndarray, x_PSM: np.ndarray) -> None:
    """Writes the columns' values to the samples' tokens: the inverse of `spread`."""
    x_PSM[self.of] = x_BT[self.at]


def packing_of(mesh: Mesh, cells: int = 16_384) -> Packing:
  """Packing of a policy's groups: rows of several groups, each with its prompt once.

  Args:
    mesh: the devices.
    cells: about the most tokens of a micro-batch on each device.
  """
  return Packing(share=True, multiple=rows_multiple(mesh), cells=cells)


def shapes_of(prompt: int, samples: int, tokens: int, packing: Packing) -> tuple[tuple[Shape, ...]]:
  """Shapes that any rollout's groups fit into, so that all steps of a run use the same programs.

  Args:
    prompt: tokens of the longest prompt.
    samples: S.
    tokens: the most tokens of a sample.
    packing: see `packing_of`.

  Returns:
    shapes of one row length, each with about twice the rows of the one before.
  """
  longest = samples * tokens + prompt * (1 if packing.share else samples)
  largest = standing(longest, samples, packing)[-1][-1]
  counts = [packing.multiple]
  while counts[-1] < largest.rows:
    counts.append(min(2 * counts[-1], largest.rows))
  return (tuple(dataclasses.replace(largest, rows=rows) for rows in counts),)


def lay(
  groups: Sequence[Group],
  chosen: Sequence[int],
  *,
  shapes: tuple[tuple[Shape, ...], ...],
  packing: Packing,
) -> Iterator[Rows]:
  """Lays groups into micro-batches.

  Args:
    groups: P of them.
    chosen: indices of those that are wanted.
    shapes: from `shapes_of`.
    packing: see `packing_of`.
  """
  needs = [need(group, packing) for group in groups]
  prompt_P = np.asarray([group.shared for group in groups])
  for micro in pack(chosen, needs, shapes):
    batch, index_BG = assemble(micro, groups, packing=packing, fields=frozenset({"previous"}))
    at = np.nonzero(batch.previous >= 0)
    which = index_BG[at[0], batch.group[at] - 1]
    yield Rows(batch, at, (which, batch.branch[at] - 1, batch.position[at] - prompt_P[which]))
