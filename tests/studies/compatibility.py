"""What an earlier commit made, read by the code of today: bitwise the same on one machine.

  python tests/studies/compatibility.py [--commit=4f9e290] [--folder=DIR] [CASE ...]

checks the commit out beside, has it train, export, audit and calibrate one small model a case (see
tests/golden/make.py), go on with each run, and score. Then the code of this checkout loads the same
folders: scores of workdirs and exports, what calibrates them, and the drift reference must be equal
bit by bit, and a run that it goes on with must come to the same parameters and optimiser's state
and write the same metrics. Left out is what was mended since: intervals, and the energy distance of
features, which is in other units now.
Prints a table; exit status 1 where something differs. `--golden` keeps the small copy instead,
which tests/test_golden.py holds to 1e-6 on any machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "tests/golden/make.py"
# Of a golden copy: pictures and event files are of no use to a later version.
LEFT_OUT = (
  "*.png",
  "tensorboard",
  "audit",
  "audit.json",
  "*.jsonl",
  "report.html",
  "start",
  "timing.jsonl",
)
GOLDEN_BYTES = 1_000_000


def checkout(commit: str, folder: Path) -> Path:
  """The tree of a commit, as files."""
  folder.mkdir(parents=True)
  archive = subprocess.run(
    ["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True
  )
  subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
  return folder


def run(tree: Path, *arguments: str | Path) -> None:
  """tests/golden/make.py with the rm_jax of a tree."""
  environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, str(MAKE), *map(str, arguments)],
    cwd=tree,
    env=environment,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(f"{arguments} in {tree} failed:\n{done.stderr[-3000:]}")


def metrics(workdir: Path) -> list[dict]:
  """The lines of metrics.jsonl without what says how sure a figure is."""

  def figures(value):
    if not isinstance(value, dict):
      return value
    unsure = ("interval", "method", "why")
    return {key: figures(one) for key, one in value.items() if key not in unsure}

  return [figures(json.loads(line)) for line in (workdir / "metrics.jsonl").open()]


def state(workdir: Path) -> dict:
  """What the newest checkpoint says of the bits of each of its arrays."""
  newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
  return json.loads((newest / "position" / "metadata").read_text())["fingerprint"]


def same_reference(a: Path, b: Path) -> bool:
  with np.load(a) as one, np.load(b) as other:
    return one.files == other.files and all(np.array_equal(one[k], other[k]) for k in one.files)


def compare(tree: Path, made: Path, work: Path) -> list[tuple[str, str, str]]:
  """(case, what, 'equal' or how it differs) of everything that `made` holds."""
  found = []
  run(ROOT, "read", made, work / "read.json")
  read = json.loads((work / "read.json").read_text())
  for folder in sorted(made.iterdir()):
    case = folder.name
    before = json.loads((folder / "scores.json").read_text())
    for name, values in before.items():
      if values == read[case][name]:
        found.append((case, f"scores of {name}", "equal"))
        continue
      a, b = (np.hstack(x).astype(float) for x in (values, read[case][name]))
      found.append((case, f"scores of {name}", f"differ by {np.abs(a - b).max():.3g}"))
    if (folder / "run/model/calibration.json").exists():
      found += _audited(case, folder, work)
    for name, code in (("before", tree), ("now", ROOT)):
      shutil.copytree(folder / "run", work / name / case)
      run(code, "resume", made, case, work / name / case)
    one, other = work / "before" / case, work / "now" / case
    found.append(
      (case, "metrics of the run that goes on", _verdict(metrics(one) == metrics(other)))
    )
    found.append((case, "its parameters and optimiser", _verdict(state(one) == state(other))))
  return found


def _audited(case: str, folder: Path, work: Path) -> list[tuple[str, str, str]]:
  """An audit of today of a copy of the workdir: its reference is the one that was kept."""
  copy = work / "audited" / case
  shutil.copytree(folder, copy)
  run(ROOT, "audit", copy.parent, case, copy / "again")
  found = []
  kept = [path / "run/model/reference.npz" for path in (folder, copy)]
  found.append((case, "drift reference", _verdict(same_reference(*kept))))
  old, new = (json.loads((copy / name).read_text()) for name in ("audit.json", "again.json"))
  names = ("scores", "features", "shift")
  mended = ("features", "energy")
  drift = [
    {
      name: {k: v["value"] for k, v in part.items() if (name, k) != mended}
      if isinstance(part, dict)
      else part
    }
    for report in (old, new)
    for name, part in ((n, report["drift"][n]) for n in names)
  ]
  found.append((case, "distances to it", _verdict(drift[: len(names)] == drift[len(names) :])))
  old, new = (
    json.loads((path / "run/model/calibration.json").read_text())["pairs"]
    for path in (folder, copy)
  )
  same = all(new[key] == old[key] for key in ("temperature", "zero", "reference"))
  found.append((case, "calibration, fitted again", _verdict(same)))
  return found


def _verdict(same: bool) -> str:
  return "equal" if same else "differs"


def keep_golden(commit: str, tree: Path, work: Path) -> None:
  """The small copy under tests/golden/COMMIT."""
  sys.path.insert(0, str(ROOT))
  from tests.golden.make import KEPT

  run(tree, "make", work / "made", *KEPT)
  golden = ROOT / "tests/golden" / commit
  shutil.rmtree(golden, ignore_errors=True)
  shutil.copytree(work / "made", golden, ignore=shutil.ignore_patterns(*LEFT_OUT))
  size = sum(path.stat().st_size for path in golden.rglob("*") if path.is_file())
  print(f"{golden.relative_to(ROOT)}: {size} bytes")
  if size > GOLDEN_BYTES:
    raise SystemExit(f"{size} bytes; expected at most {GOLDEN_BYTES}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--commit", default="4f9e290")
  parser.add_argument("--folder", help="where to work; default: a temporary folder")
  parser.add_argument("--golden", action="store_true", help="keep the small copy, compare nothing")
  parser.add_argument("cases", nargs="*")
  given = parser.parse_args()
  # A golden copy has the folder's name in it, which is to be nobody's own.
  made = "/tmp/rm_jax_golden" if given.golden else tempfile.mkdtemp(prefix="rm_jax_compatibility_")
  work = Path(given.folder or made)
  tree = checkout(given.commit, work / "tree")
  if given.golden:
    keep_golden(given.commit, tree, work)
    return
  run(tree, "make", work / "made", *given.cases)
  found = compare(tree, work / "made", work)
  print(f"| case | what {given.commit} made | read today |\n|---|---|---|")
  for line in found:
    print("| " + " | ".join(line) + " |")
  wrong = sum(line[2] != "equal" for line in found)
  print(f"{len(found)} compared, {wrong} different")
  sys.exit(wrong > 0)


if __name__ == "__main__":
  main()
