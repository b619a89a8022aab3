"""What became of the proxy and of the truth: summary.json and report.png of a chain.

Intervals are over evaluation prompts, each of which is a cluster of its own samples. Gao, Schulman
and Hilton (2023), "Scaling Laws for Reward Model Overoptimization": with d = √KL the reward of
best-of-n is d (α − β d), that of a policy by reinforcement learning d (α − β log d).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit.plots import BLUE, GREEN, GREY, ORANGE
from rm_jax.audit.sections.overoptimisation import curve
from rm_jax.metrics.best_of_n import best_of_n, fit_gao, peak
from rm_jax.metrics.interval import Resampling
from rm_jax.rlhf.watch import Seen, StopRule
from rm_jax.storage import pictures

CURVES = ("proxy", "truth", "gold")  # figures of an evaluation that have a start, a peak, an end
_POINTS = 4  # fewest evaluations of different KL above 0 that Gao's forms are fitted to
_LEVEL = 0.95


class Curve:
  """A figure over evaluations, with intervals over prompts.

  Args:
    values_EP: [E, P], the mean over each prompt's samples, of E evaluations.
  """

  def __init__(self, values_EP: np.ndarray):
    self.values_EP = values_EP
    self.mean_E = values_EP.mean(axis=1)
    self._plan = Resampling(range(values_EP.shape[1]), level=_LEVEL, resamples=2000)
    self.draws_RE = _means(values_EP, self._plan)

  def at(self, e: int) -> dict[str, Any]:
    """{value, interval} of an evaluation."""
    return self._figure(self.mean_E[e], self.draws_RE[:, e])

  def change(self, before: int, after: int) -> dict[str, Any]:
    """{value, interval} of the change between two evaluations, prompt by prompt."""
    draws_R = self.draws_RE[:, after] - self.draws_RE[:, before]
    return self._figure(self.mean_E[after] - self.mean_E[before], draws_R)

  def _figure(self, value: float, draws_R: np.ndarray) -> dict[str, Any]:
    return {"value": float(value), **self._plan.interval(float(value), draws_R).report()}

  def fall(self, turns: Sequence[int]) -> dict[str, Any]:
    """How far it falls from its highest evaluation to the last: see `metrics.best_of_n.peak`.

    The interval allows for the peak's having been chosen among all evaluations.
    """
    prompts = range(self.values_EP.shape[1])
    drawn = Resampling(prompts, resamples=2000, least=1, bootstrap=True)
    found = peak(turns, self.mean_E, _means(self.values_EP, drawn), drawn.worth, level=_LEVEL)
    return {"turn": found["n"], "falls": found["peaks"], **found["drop"]}

  def fit(self, d_E: np.ndarray, form: str) -> dict[str, Any]:
    """Gao's form, of the change since the first evaluation: see `metrics.best_of_n.fit_gao`."""
    change_E, draws_RE = self.mean_E - self.mean_E[0], self.draws_RE - self.draws_RE[:, :1]
    if len(np.unique(d_E[d_E > 0])) < _POINTS:
      return {"form": form, "why": f"fewer than {_POINTS} evaluations with a KL above 0"}
    return fit_gao(d_E, change_E, form=form, draws_RM=draws_RE, plan=self._plan)


def _means(values_EP: np.ndarray, plan: Resampling) -> np.ndarray:
  """Means over the prompts of each replicate, [R, E]."""
  blocks = [times_RP @ values_EP.T / times_RP.sum(1, keepdims=True) for times_RP in plan.times()]
  return np.concatenate(blocks) if blocks else np.zeros((0, len(values_EP)))


def of_turns(
  lines: Sequence[Mapping[str, Any]],
  means: Sequence[Mapping[str, Any]],
  rule: StopRule,
  *,
  acted: bool,
) -> dict[str, Any]:
  """The report of a policy that was evaluated as it was optimised.

  Args:
    lines: of evaluations.jsonl, at least one.
    means: of metrics.jsonl, of the same evaluations.
    rule: the stop rule.
    acted: whether it has ended the run where it said stop.

  Returns:
    {points: for each evaluation {turn, kl, d: √KL (0 below 0), proxy, reward, and truth and gold
    where known}; proxy, truth, gold: {start, peak, end, each {value, interval}; peak has `turn`;
    fall: from the peak to the end, {value, interval, falls: whether it is above 0 with its whole
    interval}; proxy_after: the proxy's change from this peak to the end; fit: of Gao's form}; kl:
    of the last evaluation; stop: {turn, why, acted, and saved: by how much the truth there is above
    the truth at the end}, None where the rule never says stop}.
  """
  turns = [line["step"] for line in lines]
  kl_EP = np.asarray([line["kl"] for line in lines])
  curves = {
    name: Curve(np.asarray([line[name] for line in lines])) for name in CURVES if name in lines[0]
  }
  d_E = np.sqrt(np.maximum(kl_EP.mean(axis=1), 0.0))
  points = [
    {"turn": turn, "kl": float(kl_EP[e].mean()), "d": float(d_E[e])}
    | {name: float(np.mean(lines[e][name])) for name in ("reward", *curves)}
    for e, turn in enumerate(turns)
  ]
  found: dict[str, Any] = {"points": points, "kl": Curve(kl_EP).at(-1)}
  for name, one in curves.items():
    top = int(np.argmax(one.mean_E))
    found[name] = {
      "start": one.at(0),
      "peak": {"turn": turns[top], **one.at(top)},
      "end": one.at(-1),
      "fall": one.fall(turns) if len(turns) > 1 else None,
      "proxy_after": curves["proxy"].change(top, -1),
      "fit": one.fit(d_E, "rl"),
    }
  verdict = rule.says(means)
  if verdict:
    verdict = {**verdict, "acted": acted}
    if "truth" in curves:
      verdict["saved"] = curves["truth"].change(-1, turns.index(verdict["turn"]))
  return found | {"stop": verdict}


def of_best_of_n(seen: Seen) -> dict[str, Any]:
  """The report of best-of-n among N samples of the start, as `of_turns`.

  n takes the place of turns, and KL is log n − (n − 1)/n (Nakano et al. 2021), an upper bound where
  rewards tie. The rewards after shaping choose, and are the proxy. `curve` is that of
  `metrics.best_of_n.best_of_n_curve`.
  """
  proxy_PN = seen.values["reward"]
  found: dict[str, Any] = {"stop": None}
  for name in CURVES:
    if name not in seen.values:
      continue
    value_PN = proxy_PN if name == "proxy" else seen.values[name]
    clusters = list(range(len(value_PN)))
    made = curve(proxy_PN, value_PN, clusters, 0)
    one = Curve(best_of_n(proxy_PN, value_PN, made["n"])[1].T)
    top = int(np.argmax(one.mean_E))
    if name == "proxy":
      proxy = one
      found["points"] = [
        {"turn": n, "kl": kl, "d": float(np.sqrt(kl)), "reward": float(one.mean_E[i])}
        for i, (n, kl) in enumerate(zip(made["n"], made["kl"], strict=True))
      ]
    for point, value in zip(found["points"], one.mean_E, strict=True):
      point[name] = float(value)
    drop = made["peak"]["drop"]
    found[name] = {
      "start": one.at(0),
      "peak": {"turn": made["n"][top], **one.at(top)},
      "end": one.at(-1),
      "fall": {"turn": made["peak"]["n"], "falls": made["peak"]["peaks"], **drop},
      "proxy_after": proxy.change(top, -1),
      "fit": made["fits"]["true"]["bon"],
    }
    found["kl"] = {"value": made["kl"][-1], "interval": None, "why": made["kl_is"]}
  return found


def sentence(summary: Mapping[str, Any]) -> str:
  """One line on what became of the proxy and of the truth."""
  said = []
  for name in CURVES:
    if name in summary:
      one = summary[name]
      said.append(
        f"{name} {one['start']['value']:.3f} at the start, {_said(one['peak'])} at its peak "
        f"({one['peak']['turn']}), {_said(one['end'])} at the end"
      )
      if one["fall"] and one["fall"]["value"]:
        said[-1] += f", a fall of {_said(one['fall'])}"
  return f"{summary['method']}: KL {summary['kl']['value']:.2f}; " + "; ".join(said)


def _said(figure: Mapping[str, Any]) -> str:
  if not figure.get("interval"):
    return f"{figure['value']:.3f}"
  low, high = figure["interval"]
  return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def draw(path: Path, summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
  """Writes report.png: proxy and truth against √KL; over turns KL, length, entropy, disagreement.

  Args:
    path: of the picture.
    summary: of `of_turns` or `of_best_of_n`.
    lines: of metrics.jsonl, on turns and evaluations; () where there are no turns.
  """
  colours = {"proxy": BLUE, "truth": ORANGE, "gold": GREEN}
  evaluated = [line for line in lines if line["split"] == "evaluation"]
  panels = [
    name
    for name in ("kl", "length", "entropy", "disagreement")
    if any(line.get(name) is not None for line in evaluated)
  ]
  figure = pictures.figure(5.2 + 2.6 * ((len(panels) + 1) // 2), 4.8)
  grid = figure.add_gridspec(2, 2 + (len(panels) + 1) // 2)
  axis = figure.add_subplot(grid[:, :2])
  points = summary["points"]
  for name in CURVES:
    if name in summary:
      change = [point[name] - points[0][name] for point in points]
      d = [point["d"] for point in points]
      axis.plot(d, change, "o-", ms=3, color=colours[name], label=name)
  if stop := summary.get("stop"):
    at = next(point["d"] for point in points if point["turn"] == stop["turn"])
    axis.axvline(at, color=GREY, lw=0.9, ls="--", label="the stop rule")
  axis.axhline(0, color=GREY, lw=0.8, ls=":")
  axis.set(xlabel="√KL to the start", ylabel="change since the start", title=summary["method"])
  axis.legend(frameon=False, fontsize=8)
  for i, name in enumerate(panels):
    side = figure.add_subplot(grid[i % 2, 2 + i // 2])
    known = [line for line in evaluated if line.get(name) is not None]
    side.plot([x["step"] for x in known], [x[name] for x in known], "o-", ms=2, color=BLUE)
    side.set_title("KL" if name == "kl" else name, fontsize=9)
    side.set_xlabel("turn", fontsize=8)
    side.tick_params(labelsize=7)
  path.write_bytes(pictures.png(figure, dpi=110))
