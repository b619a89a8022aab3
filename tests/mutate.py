"""Mutation testing of rm_jax/: `python tests/mutate.py --seed=S`.

A mutation changes one line of code: a comparison, a constant, `and` to `or`, a sign, a keyword
argument left out ... If no test fails with it, it survives, and a test is missing. Mutations are
drawn by a seed, evenly over the rooms and then over their lines. Each is made in a copy of the
tree. The tests run in stages, until one fails: first those that mirror the file or import it, fast
ones before slow ones; then all other fast tests; then all other slow tests. The failing test is run
again without the mutation, where it has to pass. A test that hangs counts as failing, and the
report says so.

Results are appended to a file, one JSON line a mutation, and the same command resumes where it
stopped. With --fast no slow test is run; the command without it later runs the slow tests on the
survivors. That way a survivor takes four minutes rather than twenty-five while tests are still
being written. Mutations that change nothing are listed in mutants_equal.json with the reason, and
are not counted:

  [{"file": "rm_jax/...", "before": "the line", "after": "the line", "reason": "..."}]

A draw depends on the lines of its commit. `--draw=FILE` takes the mutations of an earlier draw from
its results instead, so that a later commit can be tried on them: each is found by its file and the
text of its line, and those whose line is gone are listed. The test that failed then is tried first,
so that a whole draw takes some ten minutes.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.mutations import Mutation, is_real, mutations_of

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
  "data", "batch", "models", "pretrained", "losses", "metrics", "reward", "heldout", "workdir",
  "train", "curate", "audit", "shaping",
)  # fmt: skip
EQUAL = Path(__file__).with_name("mutants_equal.json")
# Seconds after which a single test, and a whole stage, counts as hanging. The slowest test takes a
# minute.
TEST_LIMIT, STAGE_LIMIT = 400, 3600
# Limit of a test process's memory in bytes, so that a mutation that allocates without end fails.
MEMORY = 12 << 30


def draw(root: Path, seed: str, n: int, rooms: Iterable[str] = ROOMS) -> list[Mutation]:
  """Draws n mutations: from each room in turn a line, and of that line one mutation.

  A larger draw starts with the mutations of a smaller one.
  """
  rng = random.Random(seed)
  sources: dict[str, str] = {}
  lines: dict[str, list[list[Mutation]]] = {}
  for room in rooms:
    by_line: dict[tuple[str, int], list[Mutation]] = {}
    for path in sorted((root / "rm_jax" / room).rglob("*.py")):
      file = path.relative_to(root).as_posix()
      sources[file] = path.read_text()
      for one in mutations_of(sources[file], file):
        by_line.setdefault((file, one.line), []).append(one)
    lines[room] = list(by_line.values())

  def of(room: str) -> Iterator[Mutation]:
    while lines[room]:
      line = lines[room].pop(rng.randrange(len(lines[room])))
      for one in rng.sample(line, len(line)):
        if is_real(one, sources[one.file]):
          yield one
          break

  every = {room: of(room) for room in lines}
  drawn: list[Mutation] = []
  while every:
    for room in rng.sample(sorted(every), len(every)):
      if len(drawn) == n:
        return drawn
      if (one := next(every[room], None)) is None:
        del every[room]
      else:
        drawn.append(one)
  return drawn


def drawn_before(path: Path, seed: str, root: Path) -> tuple[dict[Mutation, str], list[Mutation]]:
  """The mutations of an earlier draw, in the present files.

  Where several lines of the file have the text, the nearest to the old line number is taken.

  Args:
    path: the results of the earlier draw.
    seed: its seed.
    root: root of the tree.

  Returns:
    (mutation -> the test that failed with it then, '' if none did; those whose line is gone).
  """
  fields = [field.name for field in dataclasses.fields(Mutation)]
  found, gone = {}, []
  for row in read_results(path, seed).values():
    one = Mutation(**{name: row[name] for name in fields})
    text = (root / one.file).read_text().split("\n") if (root / one.file).exists() else []
    lines = [number for number, line in enumerate(text, 1) if line == one.before]
    if lines:
      nearest = min(lines, key=lambda number: abs(number - one.line))
      found[dataclasses.replace(one, line=nearest)] = row["by"].removeprefix("hangs: ")
    else:
      gone.append(one)
  return found, gone


def tests_of(root: Path, file: str) -> list[str]:
  """The test files that mirror a source file by their names, then those that import it."""
  module = Path(file).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
  room, name = Path(file).parts[1], Path(file).stem
  mirrors = sorted((root / "tests" / room).glob(f"test_{name}*.py"))
  importers = [
    path
    for path in sorted((root / "tests").rglob("test_*.py"))
    if path not in mirrors and module in set(_imports(path))
  ]
  return [p.relative_to(root).as_posix() for p in [*mirrors, *importers]]


def _imports(path: Path) -> Iterator[str]:
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


_QUIET = ("-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", "-rfE")
# A pytest plugin for the copy: a test that hangs is named and ends its process with code 77.
_PLUGIN = """
import os, signal, pytest

ERR = os.dup(2)  # pytest captures file descriptor 2 itself

def hang(*_):
  os.write(ERR, b"HANGS " + item.encode() + b"\\n")
  os._exit(77)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
  globals()["item"] = item.nodeid
  signal.signal(signal.SIGALRM, hang)
  signal.alarm(int(os.environ["RM_JAX_TEST_LIMIT"]))
  try:
    return (yield)
  finally:
    signal.alarm(0)
"""


class Copy:
  """A copy of the tree in which mutations are tried, one at a time.

  Args:
    root: root of the tree.
    folder: an empty folder for the copy.
    limit: seconds after which a test counts as hanging.
  """

  def __init__(self, root: Path, folder: Path, limit: int = TEST_LIMIT):
    self.limit = limit
    self.root, self.tree, self.cache = root, folder / "tree", folder / "cache"
    # The copy leaves out generated folders and git's own. Some tests read the folder `shared`
    # beside the tree, so it is linked.
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs")
    shutil.copytree(root, self.tree, ignore=left_out)
    (folder / "plugin").mkdir()
    (folder / "plugin" / "hangs.py").write_text(_PLUGIN)
    if (shared := root.parent / "shared").is_dir():
      (folder / "shared").symlink_to(shared)
    self.plugin = folder / "plugin"

  def pytest(self, *arguments: str) -> tuple[int | None, str]:
    """Runs pytest in one process: (exit code, or None after STAGE_LIMIT; output)."""
    # The token cache is cleared, because it could hold tokens made by the mutation before.
    shutil.rmtree(self.cache / "tokens", ignore_errors=True)
    self.cache.mkdir(exist_ok=True)
    process = subprocess.Popen(
      [sys.executable, "-m", "pytest", "-x", "-p", "hangs", *_QUIET, *arguments],
      cwd=self.tree,
      env=os.environ
      | {
        "PYTHONPATH": f"{self.tree}:{self.plugin}",
        "RM_JAX_TEST_CACHE": str(self.cache),
        "RM_JAX_TEST_LIMIT": str(self.limit),
        "JAX_PLATFORMS": "cpu",
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
    )
    try:
      out, _ = process.communicate(timeout=STAGE_LIMIT)
      return process.returncode, out
    except subprocess.TimeoutExpired:
      return None, ""
    finally:
      with contextlib.suppress(ProcessLookupError):  # Ends the processes that tests started, too.
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()

  def write(self, file: str, text: str) -> None:
    """Writes a source file and removes its compiled files, which could be taken for current."""
    path = self.tree / file
    path.write_text(text)
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
      old.unlink()

  def try_out(self, mutation: Mutation, fast: bool = False, known: str = "") -> dict:
    """Tries a mutation: {'outcome', 'stage', 'by', 'seconds'}.

    Args:
      mutation: a mutation of a file of the tree.
      fast: run no slow test in the stages.
      known: a test that failed with it once, which is run before all others.

    Raises:
      RuntimeError: the test that fails also fails without the mutation.
    """
    began = time.monotonic()
    source = (self.root / mutation.file).read_text()
    near = tests_of(self.root, mutation.file)
    ignored = [f"--ignore={path}" for path in near]
    stages = {"fast": ["-m", "not slow", *ignored], "slow": ["-m", "slow", *ignored]}
    if near:  # The tests of the file come first, its fast ones before its slow ones.
      own = {"near": ["-m", "not slow", *near], "near, slow": ["-m", "slow", *near]}
      stages = own | stages
    if fast:
      stages = {stage: arguments for stage, arguments in stages.items() if "slow" not in stage}
    if "::" in known:
      stages = {"known": [known]} | stages
    self.write(mutation.file, mutation.apply(source))
    found = {"outcome": "survived", "stage": [*stages][-1], "by": ""}
    for stage, arguments in stages.items():
      code, out = self.pytest(*arguments)
      # 5 means that no test was selected, and 4 that the known test is no more.
      if code in (0, 5) or (stage == "known" and code == 4):
        continue
      found = {"outcome": "killed", "stage": stage, "by": _culprit(code, out)}
      break
    self.write(mutation.file, source)
    if found["outcome"] == "killed" and "::" in found["by"]:
      code, out = self.pytest(found["by"].removeprefix("hangs: "))
      if code != 0:
        raise RuntimeError(f"{found['by']} fails without a mutation too:\n{out[-3000:]}")
    return found | {"seconds": round(time.monotonic() - began)}


def _culprit(code: int | None, out: str) -> str:
  """The test that failed or hung; without one, how pytest ended."""
  if code is None:
    return "hangs: a whole stage"
  if hangs := re.search(r"^HANGS (.+)$", out, re.MULTILINE):
    return f"hangs: {hangs[1]}"
  if failed := re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.+?)?)(?: - |$)", out, re.MULTILINE):
    return failed[1]
  return f"exit code {code}: {out.strip()[-200:]}"


def known_equal(path: Path = EQUAL) -> dict[tuple[str, str, str], str]:
  """(file, line before, line after) -> the reason why the mutation changes nothing."""
  if not path.exists():
    return {}
  return {
    (x["file"], x["before"].strip(), x["after"].strip()): x["reason"]
    for x in json.loads(path.read_text())
  }


def _equal_key(mutation: Mutation) -> tuple[str, str, str]:
  return mutation.file, mutation.before.strip(), mutation.after.strip()


def read_results(path: Path, seed: str) -> dict[tuple, dict]:
  """The results of a seed, by mutation. If a mutation has several, the last one counts."""
  if not path.exists():
    return {}
  rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
  return {(r["file"], r["line"], r["before"], r["after"]): r for r in rows if r["seed"] == seed}


def is_waiting(result: dict | None, fast: bool, again: bool) -> bool:
  """Whether a mutation with this last result has to be tried.

  It has to if it was never tried, if it survived and `again` is set, or if it survived the fast
  tests and slow ones may run now.
  """
  if result is None or result["outcome"] != "survived":
    return result is None
  return again or (result["stage"] == "fast" and not fast)


def summary(drawn: list[Mutation], results: dict[tuple, dict]) -> str:
  """The report: each survivor as a diff, the mutations that change nothing, and the counts."""
  equal = known_equal()
  without = [m for m in drawn if _equal_key(m) in equal]
  counted = [m for m in drawn if m not in without and m.key in results]
  survivors = [m for m in counted if results[m.key]["outcome"] == "survived"]
  hangs = sum(results[m.key]["by"].startswith("hangs") for m in counted)
  killed = len(counted) - len(survivors)
  lines = [one.diff() + "\n" for one in survivors]
  lines += [f"not counted: {equal[_equal_key(m)]}\n{m.diff()}\n" for m in without]
  share = f" = {killed / len(counted):.1%}" if counted else ""
  lines.append(
    f"{killed} of {len(counted)} killed{share} ({hangs} by a hang), {len(survivors)} survived; "
    f"{len(without)} without consequence; {len(drawn) - len(counted) - len(without)} not tried yet"
  )
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seed", required=True, help="what decides the draw, such as a commit")
  parser.add_argument("--n", type=int, default=60, help="mutations")
  parser.add_argument("--jobs", type=int, default=2, help="mutations side by side")
  parser.add_argument("--rooms", default=",".join(ROOMS), help="of rm_jax/")
  parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl", help="a file kept")
  parser.add_argument("--fast", action="store_true", help="leave out the slow tests")
  parser.add_argument("--again", action="store_true", help="try survivors again: tests were added")
  parser.add_argument("--draw", type=Path, help="results of an earlier draw, to try it again here")
  parser.add_argument("--list", action="store_true", help="print what is drawn, and stop")
  flags = parser.parse_args(argv)
  known: dict[Mutation, str] = {}
  if flags.draw:
    known, gone = drawn_before(flags.draw, flags.seed, ROOT)
    if not known and not gone:
      parser.error(f"--draw={flags.draw} has no mutation of --seed={flags.seed}")
    drawn = list(known)
    for one in gone:
      print(f"the line is gone:\n{one.diff()}\n")
  else:
    drawn = draw(ROOT, flags.seed, flags.n, flags.rooms.split(","))
  if flags.list:
    print("\n".join(one.diff() + "\n" for one in drawn))
    return 0
  results = read_results(flags.results, flags.seed)
  equal = known_equal()
  waiting = [
    one
    for one in drawn
    if _equal_key(one) not in equal and is_waiting(results.get(one.key), flags.fast, flags.again)
  ]
  lock = threading.Lock()
  with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
    copies: queue.Queue[Copy] = queue.Queue()
    for index in range(min(flags.jobs, len(waiting))):
      own = Path(folder, str(index))
      own.mkdir()
      copies.put(Copy(ROOT, own))

    def one_of(mutation: Mutation) -> None:
      copy = copies.get()
      try:
        found = copy.try_out(mutation, flags.fast, known.get(mutation, ""))
      finally:
        copies.put(copy)
      row = {"seed": flags.seed, **dataclasses.asdict(mutation), **found}
      with lock:
        results[mutation.key] = row
        with flags.results.open("a") as file:
          file.write(json.dumps(row) + "\n")
        print(f"{found['outcome']} ({found['stage']}, {found['seconds']} s) {found['by']}\n"
              f"{mutation.diff()}\n", flush=True)  # fmt: skip

    with concurrent.futures.ThreadPoolExecutor(max(1, flags.jobs)) as pool:
      for done in [pool.submit(one_of, mutation) for mutation in waiting]:
        done.result()
  print(summary(drawn, results))
  return 0


if __name__ == "__main__":
  sys.exit(main())
