"""The audit's page: one HTML file with its pictures inside, which needs nothing else."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rm_jax.audit.draw import pictures, stem
from rm_jax.audit.writing import STYLE, Writer, number, text
from rm_jax.data.dialogue import plain
from rm_jax.storage.files import write_atomically, write_json

log = logging.getLogger(__name__)


def write(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
  """Writes report.json, report.html and the pictures as PNG files of their own.

  Pictures that an earlier report of this folder names and this one has not are taken away.

  Args:
    folder: made where it does not exist.
    report: {about: {model, data, ...}, ...}: `sections.audit`'s or `audit_steps`'s sections, and
      benchmarks: name -> their figures.

  Returns:
    {what could not be drawn or written: why}; all else is there.
  """
  folder.mkdir(parents=True, exist_ok=True)
  before = _pictures_of(folder)
  # By way of JSON, so that the page shows what the file says.
  report = json.loads(json.dumps(report, allow_nan=False))
  drawn, failed = pictures(report)
  report["pictures"] = sorted(drawn)
  for name, png in drawn.items():
    (folder / f"{name}.png").write_bytes(png)
  for name in before - drawn.keys():
    (folder / f"{name}.png").unlink(missing_ok=True)
  write_json(folder / "report.json", report)
  page = _Page(report, drawn)
  write_atomically(folder / "report.html", _rendered(page))
  return {f"the picture {name}": why for name, why in failed.items()} | page.failed


def _pictures_of(folder: Path) -> set[str]:
  """The pictures that the report in a folder says are its own."""
  try:
    named = json.loads((folder / "report.json").read_text(encoding="utf-8"))["pictures"]
  except (OSError, ValueError, KeyError, TypeError):
    return set()
  return {name for name in named if re.fullmatch(r"\w+", name)}


def render(report: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
  """The page of a report, as `write` has it."""
  return _rendered(_Page(report, drawn))


def _rendered(page: "_Page") -> str:
  report = page.report
  page.guarded("head", page.head)
  for name, make in (
    ("agreement", page.agreement),
    ("compare", page.compare),
    ("controls", page.controls),
    ("calibration", page.calibration),
    ("robustness", page.robustness),
    ("drift", page.drift),
    ("hacking", page.hacking),
    ("overoptimisation", page.overoptimisation),
    ("rules", page.rules),
    ("benchmarks", page.benchmarks),
  ):
    if name not in report:
      continue
    page.add(f"<h2 id={name}>{_TITLES[name]}</h2>")
    if set(report[name]) == {"why"}:
      page.add(f"<p class=why>Not measured: {text(report[name]['why'])}.</p>")
    else:
      page.guarded(name, make)
  title = text(f"Audit of {report['about']['model']}")
  return (
    f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{title}</title>"
    '<meta name=viewport content="width=device-width, initial-scale=1">'
    f'<link rel=icon href="data:,"><style>{STYLE}</style></head><body>\n'
    + "\n".join(page.parts)
    + "\n</body></html>\n"
  )


_TITLES = {
  "agreement": "Agreement with people",
  "compare": "Against other models",
  "controls": "What needs no reading",
  "calibration": "Calibration",
  "robustness": "Robustness",
  "drift": "Drift",
  "hacking": "What else the score rewards",
  "overoptimisation": "Over-optimisation: the best of n",
  "rules": "Out of range, and caught by rules",
  "benchmarks": "Published benchmarks",
}


class _Page(Writer):
  """The sections, each as the report has it; `failed` names those that could not be written."""

  def __init__(self, report: Mapping[str, Any], drawn: Mapping[str, bytes]):
    super().__init__(report, drawn)
    self.failed: dict[str, str] = {}

  def guarded(self, name: str, make: Callable[[], None]) -> None:
    """Writes a part of the page, or says that it could not: the others are written."""
    begun = len(self.parts)
    try:
      make()
    except Exception as error:
      log.exception("the page's part %s", name)
      del self.parts[begun:]
      self.failed[f"the page's part {name}"] = f"{type(error).__name__}: {error}"
      self.add(f"<p class=why>It could not be written; report.json has it: {text(error)}.</p>")

  def head(self) -> None:
    about = self.report["about"]
    self.add(f"<h1>Audit of {text(about['model'])}</h1>")
    self.add(
      f"<p>On {text(about['data'])}. Intervals are 95 %, over conversations: of 30 and more by "
      "the bootstrap, of fewer by Student's t or Wilson's, of fewer than 5 there is none.</p>"
    )
    said = []
    if "accuracy" in self.report.get("agreement", {}):
      figure = self.figure("agreement", key="accuracy")
      said.append(f"agrees with people in {figure} of {self.value('agreement', 'n')}")
    for name in _TITLES:
      says = self.at(name, "says") or []
      said += [text(one) for one in ([says] if isinstance(says, str) else says)]
    for name, why in self.report.get("failed", {}).items():
      said.append(f"<b>{text(name)} could not be measured</b>: {text(why)}")
    for name in self.at("overoptimisation") or {}:
      if name != "why":
        path = ("overoptimisation", name, "variants", "score", "peak", "statement")
        said.append(f"best of n on {text(name)}: {self.value(*path)}")
    self.add("<ul>" + "".join(f"<li>{one}</li>" for one in said) + "</ul>")
    rows = [(text(key.replace("_", " ")), self.value("about", key)) for key in about]
    for key in self.report.get("scorer", {}):
      rows.append((f"texts {text(key)}", self.value("scorer", key)))
    self.table(("", ""), rows)

  def agreement(self) -> None:
    part = self.report["agreement"]
    rows = []
    if "accuracy" in part:
      rows.append(
        ("accuracy", self.figure("agreement", key="accuracy"), self.value("agreement", "n"))
      )
    if "best_reachable" in part:
      rows.append(("best reachable", self.value("agreement", "best_reachable"), ""))
    if "one_order" in part:
      path = ("agreement", "one_order")
      rows.append(("any score, at best", self.figure(*path), self.value(*path, "n")))
    for name in ("auroc", "spearman"):
      if isinstance(part.get(name), dict):
        rows.append((name, self.figure("agreement", name), ""))
    for name in part.get("correlation", {}):
      one = part["correlation"][name]
      if not isinstance(one, dict):
        continue
      for where in ("within", "pooled") if "within" in one else (None,):
        path = ("agreement", "correlation", name, *([where] if where else []))
        rows.append((f"{name} {where or 'within'}", self.figure(*path), self.value(*path, "n")))
      if "chance" in one:
        path = ("agreement", "correlation", name, "chance")
        rows.append((f"{name} by chance", self.value(*path), ""))
    for name in part.get("judges", {}).get("each", {}):
      path = ("agreement", "judges", "each", name)
      rows.append((f"with {name}", self.figure(*path), self.value(*path, "n")))
    for name in ("people", "model"):
      if "ceiling" in part.get("judges", {}):
        path = ("agreement", "judges", "ceiling", name)
        rows.append((f"ceiling: {name}", self.figure(*path), self.value(*path, "n")))
    self.table(("", "value", "n"), ((text(a), b, c) for a, b, c in rows))
    if "ties" in part and isinstance(part["ties"], dict):
      self.add(
        f"<p>People left {self.value('agreement', 'ties', 'people')} comparisons undecided; the "
        f"model ties {self.value('agreement', 'ties', 'model')}, which count half.</p>"
      )
    for name, parts in part.get("by", {}).items():
      self.add(f"<h3>Accuracy by {text(name.replace('_', ' '))}</h3>")
      self.picture(f"accuracy_{name}", f"accuracy by {name}")
      path = ("agreement", "by", name)
      self.table(
        ("", "accuracy", "n"),
        (
          (text(one["name"]), self.figure(*path, i), self.value(*path, i, "n"))
          for i, one in enumerate(parts)
        ),
      )

  def compare(self) -> None:
    self.table(
      ("the model less", "difference in accuracy", "both choose alike"),
      (
        (
          text(name),
          self.figure("compare", name, key="difference"),
          self.figure("compare", name, "alike"),
        )
        for name in self.report["compare"]
      ),
    )

  def controls(self) -> None:
    self.says("controls", "says")
    self.picture("controls", "accuracies of the model and of rules that read nothing")
    rows = [
      (
        text(name.replace("_", " ")),
        self.figure("controls", "rules", name, "accuracy"),
        self.figure("controls", "rules", name, "difference"),
        self.figure("controls", "rules", name, "agrees"),
      )
      for name in self.report["controls"]["rules"]
    ]
    for name in ("removed", "swapped"):
      path = ("controls", "sample", name)
      rows.append(
        (f"prompt {name}", *(self.figure(*path, k) for k in ("accuracy", "difference", "agrees")))
      )
    self.table(("control", "accuracy", "the model's less this", "chooses as the model"), rows)
    self.add(f"<p>Other prompts: on {self.value('controls', 'sample', 'pairs')} pairs.</p>")

  def calibration(self) -> None:
    for name, part in self.report["calibration"].items():
      self.add(f"<h3>{text(name)}</h3>")
      if part.get("why"):
        self.add(f"<p class=why>{text(part['why'])}</p>")
      self.picture(f"calibration_{name}", f"reliability diagram of {name}")
      rows = []
      for when in ("before", "after", "isotonic"):
        if part.get(when):
          path = ("calibration", name, when)
          rows.append((when, *(self.figure(*path, k) for k in ("ece", "brier", "nll"))))
      self.table(("", "ECE, debiased", "Brier", "loss, nats"), rows)
      path = ("calibration", name)
      if "temperature" in part:
        self.add(
          f"<p>Temperature {self.figure(*path, key='temperature')}, fitted on "
          f"{self.value(*path, 'fitted_on')} comparisons; zero at "
          f"{self.figure(*path, 'zero')}, the mean on "
          f"{text(part['zero']['reference'])}. Position: {text(part['position'])}.</p>"
        )
        self.table(
          ("source", "its own temperature", "spread of scores", "n"),
          (
            (
              text(source),
              self.figure(*path, "sources", source, key="temperature"),
              *(self.value(*path, "sources", source, k) for k in ("spread", "n")),
            )
            for source in part["sources"]
          ),
        )
      elif part.get("platt"):
        self.add(
          f"<p>σ({self.figure(*path, 'platt', 'slope')} s + "
          f"{self.figure(*path, 'platt', 'bias')})</p>"
        )

  def robustness(self) -> None:
    part = self.report["robustness"]
    self.says("robustness", "says")
    self.picture("robustness", "score changes under edits")
    self.table(
      ("edit", "kind", "n", "mean change", "flips, chosen edited", "flips, rejected", "lower"),
      (
        (
          text(f"{name}: {one['what']}"),
          text(one["kind"]),
          self.value("robustness", "edits", name, "n"),
          self.figure("robustness", "edits", name, "change"),
          self.figure("robustness", "edits", name, "flips", "chosen"),
          self.figure("robustness", "edits", name, "flips", "rejected"),
          self.figure("robustness", "edits", name, "lower"),
        )
        for name, one in part["edits"].items()
      ),
    )
    for name in part.get("red_team", {}):
      self.add(
        f"<p>Red team, {text(name)}: accuracy "
        f"{self.figure('robustness', 'red_team', name, key='accuracy')} on "
        f"{self.value('robustness', 'red_team', name, 'n')}.</p>"
      )
    self.add("<details><summary>Worst cases, as text</summary>")
    for name, one in part["edits"].items():
      for case in one["worst"][:1]:
        self.add(
          f"<h3>{text(name)}: {number(case['change'])}</h3>"
          f"<pre>{text(plain(case['prompt'])[-600:])}</pre>"
          f"<pre>{text(plain(case['response'])[:900])}</pre>"
          f"<pre>{text(plain(case['edited'])[:900])}</pre>"
        )
    self.add("</details>")

  def drift(self) -> None:
    self.says("drift", "says")
    path = ("drift",)
    self.table(
      ("", "distance", "p", "alarm"),
      (
        (
          f"{part}, {name}",
          self.figure(*path, part, name),
          *(self.value(*path, part, name, k) for k in ("p", "alarm")),
        )
        for part in ("scores", "features")
        for name in self.report["drift"][part]
      ),
    )
    monitor = self.report["drift"]["monitor"]
    self.add(
      f"<p>Monitor: {self.value('drift', 'monitor', 'tests')} windows of "
      f"{self.value('drift', 'monitor', 'window')}, {len(monitor['alarms'])} alarms.</p>"
    )
    if "disagreement" in self.report["drift"]:
      self.add(
        "<p>Its errors (0.5 = not told): by the members' disagreement AUROC "
        f"{self.figure('drift', 'disagreement', 'auroc')}, by a small margin alone "
        f"{self.figure('drift', 'disagreement', 'margin')}.</p>"
      )

  def hacking(self) -> None:
    self.says("hacking", "says")
    self.picture("hacking", "partial correlations of the score with measures of the text")
    self.table(
      ("measure", "within pairs, given quality", "all together, given quality", "Spearman"),
      (
        (
          text(name.replace("_", " ")),
          self.figure("hacking", "measures", name, "pairs", "partial"),
          self.figure("hacking", "measures", name, "partial"),
          self.figure("hacking", "measures", name, "spearman"),
        )
        for name in self.report["hacking"]["measures"]
      ),
    )
    self.add(
      "<p>The p in the sentences is of random signs of conversations, Holm's over the measures; "
      "below 20 conversations no measure is named.</p>"
      "<p>Of the top-scored tenth, in the bottom half of quality: "
      f"{self.figure('hacking', 'top_low')} (a scorer that knows nothing: 0.5, one that knows all: "
      f"{self.value('hacking', 'top_low', 'perfect')}).</p>"
    )

  def overoptimisation(self) -> None:
    for name, curve in self.report["overoptimisation"].items():
      self.add(
        f"<h3>{text(name)}: {curve['candidates']:,} candidates for each of "
        f"{curve['prompts']:,} prompts</h3>"
      )
      self.picture(stem("best_of_n_", name), f"best-of-n curves on {name}")
      rows = []
      for variant in curve["variants"]:
        path = ("overoptimisation", name, "variants", variant)
        rows.append(
          (
            text(variant),
            self.figure(*path, "proxy", -1),
            self.figure(*path, "true", -1),
            self.value(*path, "peak", "statement"),
            *(self.figure(*path, "fits", "true", "bon", k) for k in ("alpha", "beta")),
            self.value(*path, "kl_is"),
          )
        )
      head = ("picked by", "proxy at the largest n", "truth there", "does the truth peak?")
      self.table((*head, "α", "β of d (α − β d)", "KL"), rows)

  def rules(self) -> None:
    expected = self.report["rules"]["expected"]
    self.table(
      ("flagged by", "of all", "of the top-scored", "of the reference's own"),
      (
        (
          text(name),
          *(self.figure("rules", "flags", name, k) for k in ("all", "top")),
          self.value("rules", "expected", name) if name in expected else "",
        )
        for name in self.report["rules"]["flags"]
      ),
    )

  def benchmarks(self) -> None:
    for name, one in self.report["benchmarks"].items():
      self.add(f"<h3>{text(name)}: {self.figure('benchmarks', name, key='score')}</h3>")
      self.table(
        ("subset", "accuracy", "n"),
        (
          (
            text(subset),
            self.figure("benchmarks", name, "subsets", subset, key="accuracy"),
            self.value("benchmarks", name, "subsets", subset, "n"),
          )
          for subset in one.get("subsets", {})
        ),
      )
