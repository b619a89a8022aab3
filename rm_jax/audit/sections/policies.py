"""Section `policies`: what became of proxy and truth where policies were optimised against a model.

It reads finished chains of `experiments.rlhf` (docs/policies.md), and measures nothing itself: the
figures are those of the chains' summary.json, with intervals over their evaluation prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit import plots
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.errors import InputError
from rm_jax.pretrained.source import read_json
from rm_jax.storage import pictures

PICTURE = "policies"
_SUMMARY, _STAGE, _TABLE, _SAME = "summary.json", "stage.json", "table.json", "same_as.json"
# Of a summary: what every chain's has, and which of its curves tells more than the proxy does.
_NEEDED = ("method", "seed", "points", "proxy", "kl", "prompts")
_KNOWN = ("truth", "gold")
_COLOURS = (*plots.COLOURS, "#4d9a9a", "#b8860b")


def read(folder: str | Path, weights: str, model: str = "the audited model") -> dict[str, Any]:
  """Reads what became of policies that were optimised against a reward model.

  Args:
    folder: the workdir of a finished chain, or of a study of chains. Of a study those runs are read
      that are done and have this reward model; each seed of a study may have another one.
    weights: fingerprint of the reward model, `RewardModel.weights`.
    model: its name, for errors.

  Returns:
    {runs: [{name: of a study 'SETTING, seed N', method, seed, shaping: text of the chain of shaping
      or '', prompts: number of evaluation prompts, known: 'truth', 'gold' or None, which curve
      tells what the policy is worth, points: [{turn, kl, d: √KL, proxy, and truth, gold where
      known}], kl, proxy, truth, gold, stop: as `rlhf.report.of_turns` returns them}, ..],
    left_out: number of finished runs of a study that were optimised against other reward models}.

  Raises:
    InputError: the folder holds no finished chain, or none that was optimised against this reward
      model; or a file is damaged.
  """
  folder = Path(folder)
  where = f"--policies={folder}"
  if (folder / _TABLE).is_file():
    chains = _of_study(folder)
  elif (folder / _STAGE).is_file() and (folder / _SUMMARY).is_file():
    chains = {"the policy": folder}
  elif (folder / _STAGE).is_file():
    raise InputError(
      f"{where}: the chain has not finished, for it has no {_SUMMARY}; expected one that has. The "
      "command that began it goes on with it"
    )
  else:
    raise InputError(
      f"{where} holds no finished chain; expected a workdir of experiments.rlhf, with {_STAGE} and "
      f"{_SUMMARY}, or of a study of chains, with {_TABLE}"
    )
  if not chains:
    raise InputError(f"{where}: no run of the study has finished; expected one at least")
  against = {name: _reward(path) for name, path in chains.items()}
  mine = [name for name, found in against.items() if found.get("weights") == [weights]]
  if not mine:
    others = sorted({_said(found) for found in against.values()})
    raise InputError(
      f"{where}: optimised against {'; '.join(others[:3])}{'; ..' if len(others) > 3 else ''}, and "
      f"{model} has weights {weights}; expected --model to be the reward model that it was "
      "optimised against"
    )
  runs = [{"name": name, **_run(chains[name] / _SUMMARY)} for name in mine]
  return {"runs": runs, "left_out": len(chains) - len(mine)}


def _of_study(folder: Path) -> dict[str, Path]:
  """Name of each finished run of a study -> its folder."""
  found = {}
  for setting in read_json(folder / _TABLE):
    seeds = [path for path in (folder / setting).glob("*") if path.name.isdecimal()]
    for path in sorted(seeds, key=lambda path: int(path.name)):
      # A setting that changes nothing against another one has that one's run.
      done = (path / _STAGE).exists() and (path / _SUMMARY).exists()
      if done and not (path / _SAME).exists():
        found[f"{setting}, seed {path.name}"] = path
  return found


def _reward(folder: Path) -> dict[str, Any]:
  """The fingerprint of the reward model that a chain was begun with."""
  begun = read_json(folder / _STAGE)
  found = begun.get("inputs", {}).get("reward") if isinstance(begun, dict) else None
  if not isinstance(found, dict):
    raise InputError(
      f"{folder / _STAGE}: it has no inputs.reward; expected the stage of a chain of "
      "experiments.rlhf"
    )
  return found


def _said(reward: Mapping[str, Any]) -> str:
  """Which reward model a fingerprint is of, in words."""
  if "server" in reward:
    return f"the server {reward['server']}, whose weights are not known"
  weights = reward.get("weights") or ["?"]
  if len(weights) > 1:
    return f"an ensemble of {len(weights)} models with weights {', '.join(weights)}"
  return f"a model with weights {weights[0]}"


def _run(path: Path) -> dict[str, Any]:
  """What the section shows of a chain's summary."""
  summary = read_json(path)
  missing = [key for key in _NEEDED if not isinstance(summary, dict) or key not in summary]
  if missing or not summary["points"]:
    raise InputError(
      f"{path}: it has no {', '.join(missing) or 'points'}; expected the summary of a chain of "
      "experiments.rlhf"
    )
  known = next((name for name in _KNOWN if name in summary), None)
  kept = {key: summary[key] for key in ("kl", "proxy", *_KNOWN) if key in summary}
  return {
    "method": summary["method"],
    "seed": summary["seed"],
    "shaping": summary.get("shaping", ""),
    "prompts": summary["prompts"]["evaluation"],
    "known": known,
    "points": summary["points"],
    "stop": summary.get("stop"),
    **kept,
  }


def says(found: Mapping[str, Any]) -> list[str]:
  """The findings in words, from what `read` returns."""
  runs = found["runs"]
  judged = {run["name"]: run for run in runs if run["known"]}
  many = f"{len(runs)} policies were" if len(runs) > 1 else "a policy was"
  if not judged:
    return [f"{many} optimised against it, and neither the truth nor a better judge was watched"]
  out = []
  falls = {name: run[run["known"]]["fall"] for name, run in judged.items()}
  told = {name: fall for name, fall in falls.items() if fall and fall["falls"] is not None}
  falling = {name: fall for name, fall in told.items() if fall["falls"]}
  named = " and of ".join(dict.fromkeys(f"the {run['known']}" for run in judged.values()))
  if not told:
    out.append(
      f"{many} optimised against it; whether any fell from the peak of {named} is not known: there "
      "are too few evaluations, or prompts in them"
    )
  elif falling:
    worst = max(falling, key=lambda name: falling[name]["value"])
    run, fall = judged[worst], falling[worst]
    after = run[run["known"]]["proxy_after"]["value"]
    who = f", most in {worst}" if len(runs) > 1 else ""
    out.append(
      f"{many} optimised against it, and in {len(falling)} of {len(told)} the {run['known']} "
      f"fell from its peak{who}: by {_with_interval(fall)}, while the proxy changed by {after:+.3f}"
    )
  else:
    out.append(
      f"{many} optimised against it, and none is seen to fall from the peak of {named}: no "
      "interval of a fall is clear of 0"
    )
  stops = {name: run["stop"] for name, run in judged.items() if run["stop"]}
  saved = {name: stop["saved"] for name, stop in stops.items() if stop.get("saved")}
  if saved:
    best = max(saved, key=lambda name: saved[name]["value"])
    who = f" in {best}" if len(runs) > 1 else ""
    out.append(
      f"the stop rule said stop in {len(stops)} of {len(judged)}; where it did the truth was above "
      f"that at the end by at most {_with_interval(saved[best])}{who}"
    )
  return out


def _with_interval(figure: Mapping[str, Any]) -> str:
  if not figure.get("interval"):
    return f"{figure['value']:.3f}"
  low, high = figure["interval"]
  return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def _measure(subject: Subject) -> dict[str, Any] | None:
  found = subject.settings.policies
  return None if found is None else {**found, "says": says(found)}


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  return {PICTURE: lambda: _chart(found["runs"])}


def _chart(runs: Sequence[Mapping[str, Any]]) -> bytes:
  """A PNG: proxy and truth of each run against √KL, as changes since the start."""
  figure = pictures.figure(4.8, 6.6)
  left, right = figure.subplots(2, 1)
  for i, run in enumerate(runs):
    points, colour = run["points"], _COLOURS[i % len(_COLOURS)]
    d = [point["d"] for point in points]
    label = plots.one_line(run["name"] if len(runs) > 1 else run["method"])[:34]
    for axis, curve in ((left, "proxy"), (right, run["known"])):
      if curve:
        change = np.asarray([point[curve] for point in points]) - points[0][curve]
        axis.plot(d, change, "o-", ms=2, lw=1, color=colour, label=label)
    stop = run["stop"]
    if stop and run["known"]:
      at = next(p for p in points if p["turn"] == stop["turn"])
      change = at[run["known"]] - points[0][run["known"]]
      right.plot([at["d"]], [change], "s", ms=7, mfc="none", color=colour)
  left.set(title="the proxy", ylabel="change since the start")
  known = {run["known"] for run in runs if run["known"]}
  right.set(title="the truth" if known != {"gold"} else "the better judge")
  for axis in (left, right):
    axis.axhline(0, color=plots.GREY, lw=0.8, ls=":")
    axis.set_xlabel("√KL to the start")
  left.legend(frameon=False, fontsize=7)
  return plots.png(figure)


def _render(page: Writer, found: View) -> None:
  page.picture(PICTURE, "proxy and truth against √KL of policies optimised against the model")
  if any(run.value["stop"] for run in found["runs"]):
    page.add("<p>A square: where the stop rule said stop.</p>")
  rows = []
  for run in found["runs"]:
    known = run.get(run.value["known"]) if run.value["known"] else View(None)
    stop = run.get("stop")
    peak = page.figure(known.get("peak"))
    if known.value:
      peak += f" at {page.value(known['peak']['turn'])}"
    said = "never" if stop.value is None else f"at {page.value(stop['turn'])}"
    if stop.get("acted").value:
      said += ", and ended the run"
    rows.append(
      (
        page.value(run["name"]),
        page.value(run["method"]) + (f"; {escaped(s)}" if (s := run.value["shaping"]) else ""),
        page.value(run["prompts"]),
        page.figure(run["kl"]),
        *(page.figure(run["proxy"][at]) for at in ("start", "end")),
        page.value(run["known"]),
        page.figure(known.get("start")),
        peak,
        page.figure(known.get("end")),
        page.figure(known.get("fall")),
        page.figure(known.get("proxy_after")),
        said,
        page.figure(stop.get("saved")),
      )
    )
  head = ("policy", "optimised by", "prompts", "KL", "proxy, start", "proxy, end", "judge")
  head += ("start", "peak", "end", "fall from the peak", "proxy from there", "stop rule", "saved")
  page.table(head, rows)
  page.add(
    "<p>Intervals are over evaluation prompts; that of a fall allows for the peak's having been "
    "chosen. Peak and stop are at turns, of best_of_n at n, of dpo at steps: it is trained on "
    "preferences, and the model only watched. Saved: the truth where the rule said stop, less that "
    f"at the end. {page.value(found['left_out'])} runs are left out, as optimised against other "
    "reward models.</p>"
  )


SECTION = Section(
  "policies",
  "Over-optimisation: policies optimised against it",
  _measure,
  _render,
  draw=_draw,
  measure_steps=_measure,
)
