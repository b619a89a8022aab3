"""Supervised fine-tuning: a policy learns texts by the step that its later updates take, too.

    L = − Σ_t log π(t) / number of tokens t,   t the responses' own tokens, EOS included

It is the start and the reference of what follows (Ouyang et al. 2022, "Training language models to
follow instructions with human feedback", section 3.5).

Shape letters: P texts, M tokens of a response; B rows, T columns of a row.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, Shape
from rm_jax.data.report import DataError, Report
from rm_jax.models.network import Network
from rm_jax.policy.experience import shapes_of
from rm_jax.policy.text import Policy
from rm_jax.policy.update import Targets, evaluate, forward
from rm_jax.types import Batch, Example, Text


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """The loss of the module, with the methods of `update.Loss`."""

  def numerator(
    self,
    network: Network,
    params: dict,
    batch: Batch,
    targets: Targets,
    coefficient: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's Σ −log π, and its sums: see `update.Loss.numerator`."""
    del coefficient  # no reference has a part in it
    logp_BT, _ = forward(network, params, batch)
    total = jnp.sum(jnp.where(targets.where, -logp_BT, 0.0))
    count = jnp.sum(targets.where, dtype=jnp.float32)
    return total, jax.lax.stop_gradient({"weight": count, "tokens": count, "loss": total})

  def zero_sums(self) -> dict[str, jax.Array]:
    """The sums of `numerator` before the first micro-batch."""
    return {name: jnp.zeros((), jnp.float32) for name in ("weight", "tokens", "loss")}


@dataclasses.dataclass(frozen=True)
class Texts:
  """P texts as tokens, ready for `update.take_step`.

  Attributes:
    groups: P groups of one response each.
    arrays: numpy arrays [P, 1, M]: `where` (bool), the response's tokens, EOS included; `length`
      (int32), their number, at each of them.
    shapes: of the micro-batches that any of the texts fit into.
    packing: of these.
  """

  groups: list[Group]
  arrays: dict[str, np.ndarray]
  shapes: tuple[tuple[Shape, ...], ...]
  packing: Packing

  @property
  def tokens(self) -> int:
    """M, tokens of the longest response."""
    return self.arrays["where"].shape[-1]


def tokenised(
  policy: Policy, rows: Sequence[tuple[Text, Text]], report: Report, packing: Packing
) -> Texts:
  """Tokenises (prompt, response) pairs by the policy's convention.

  Args:
    policy: see `text.Policy`.
    rows: prompts and responses, both strings or both messages.
    report: counts the rows that cannot be used.
    packing: see `experience.packing_of`.

  Raises:
    DataError: none is left.
  """
  examples = [
    Example(
      prompt=prompt,
      responses=(response,),
      labels=(1.0,),
      kind="outcome",
      source="sft",
      origin=f"text {i}",
    )
    for i, (prompt, response) in enumerate(rows)
  ]
  groups, _ = policy.text_model.tokenise(examples, report)
  groups = list(groups)
  if not groups:
    raise DataError(f"none of the {len(rows)} texts to fine-tune on can be used. {report}")
  length_P = np.asarray([len(group.ids[0]) - group.shared for group in groups])
  M = int(length_P.max())
  where_P1M = (np.arange(M) < length_P[:, None])[:, None]
  arrays = {
    "where": where_P1M,
    "length": np.where(where_P1M, length_P[:, None, None], 0).astype(np.int32),
  }
  longest = max(group.shared for group in groups)
  return Texts(groups, arrays, shapes_of(longest, 1, M, packing), packing)


def mean_loss(network: Network, params: dict, texts: Texts, mesh: Mesh) -> float:
  """The module's L of some texts under some parameters.

  Args:
    network: the policy's.
    params: its parameters on the mesh, nested.
    texts: see `Texts`.
    mesh: the devices.
  """
  logp_P1M, _ = evaluate(
    network,
    params,
    texts.groups,
    tokens=texts.tokens,
    shapes=texts.shapes,
    packing=texts.packing,
    mesh=mesh,
  )
  where_P1M = texts.arrays["where"]
  return float(-logp_P1M[where_P1M].mean(dtype=np.float64))
