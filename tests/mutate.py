"""One-line mutations of rm_jax/, and whether the tests notice: `python tests/mutate.py --seed=S`.

A mutation changes one line of code: a comparison, a constant, `and` to `or`, a sign, a keyword
argument left out ... They are drawn by a seed, evenly over the rooms and then over their lines.
Each is made in a copy of the tree and tried on the tests that mirror its file or import it, the
slow ones last; if it survives them, on what `-m 'not slow'` holds beside; then on the other slow
tests. A test that fails is run again without the mutation, where it has to pass. A hang counts as
noticed, and is said.

Results are kept, a JSON line a mutation; the same command goes on where it stopped. Mutations
without consequence stand in mutants_equal.json with the reason, and are not counted:

  [{"file": "rm_jax/...", "before": "the line", "after": "the line", "reason": "..."}]
"""

import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import difflib
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

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "models", "losses", "metrics", "train", "curate", "audit")
EQUAL = Path(__file__).with_name("mutants_equal.json")
# Seconds after which one test hangs, and a whole stage does. The slowest test takes a minute.
TEST_LIMIT, STAGE_LIMIT = 400, 3600
# Bytes of data that a process of tests may hold: a mutation that asks for all memory is noticed.
MEMORY = 12 << 30

_COMPARE = {
  ast.Lt: "<=",
  ast.LtE: "<",
  ast.Gt: ">=",
  ast.GtE: ">",
  ast.Eq: "!=",
  ast.NotEq: "==",
  ast.In: "not in",
  ast.NotIn: "in",
  ast.Is: "is not",
  ast.IsNot: "is",
}
_BINARY = {
  ast.Add: "-",
  ast.Sub: "+",
  ast.Mult: "/",
  ast.Div: "*",
  ast.FloorDiv: "*",
  ast.BitAnd: "|",
  ast.BitOr: "&",
}
_NAMES = {
  a: b
  for pair in (
    ("min", "max"),
    ("any", "all"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("floor", "ceil"),
    ("logical_and", "logical_or"),
    ("append", "extend"),
    ("startswith", "endswith"),
    ("lstrip", "rstrip"),
    ("zeros_like", "ones_like"),
  )
  for a, b in (pair, pair[::-1])
}
# Calls whose arguments are words for people: logs, warnings, and what stands beside a progress bar.
_SPOKEN = re.compile(r"(log|logger|logging|warnings|tqdm)\.\w+|print|.*\.set_postfix_str|.*Error")


@dataclasses.dataclass(frozen=True, order=True)
class Mutation:
  """One line of a file before and after, without their ends."""

  file: str
  line: int
  before: str
  after: str
  kind: str

  @property
  def key(self) -> tuple[str, int, str, str]:
    return self.file, self.line, self.before, self.after

  def apply(self, text: str) -> str:
    """The file's text with the mutation."""
    lines = text.split("\n")
    if lines[self.line - 1] != self.before:
      raise ValueError(f"{self.file}:{self.line} is no more {self.before!r}")
    lines[self.line - 1] = self.after
    return "\n".join(lines)

  def diff(self) -> str:
    old, new = [self.before], [self.after]
    lines = difflib.unified_diff(old, new, self.file, self.file, lineterm="", n=0)
    return "\n".join(
      x.replace("@@ -1 +1 @@", f"@@ line {self.line}, {self.kind} @@") for x in lines
    )


class _Finder(ast.NodeVisitor):
  """Edits of a module, each (line, first byte, last byte, new text, kind), all within one line."""

  def __init__(self, source: str):
    self.lines = [line.encode() for line in source.split("\n")]
    self.edits: list[tuple[int, int, int, str, str]] = []
    self.bound: list[set[str]] = [set()]  # names that a function has so far

  # What is not mutated: words for people, annotations, imports, decorators.

  def visit_JoinedStr(self, node):
    pass

  # An assertion, as `zip`'s `strict` is one, says of right code only that it is right.
  visit_Import = visit_ImportFrom = visit_Assert = visit_JoinedStr

  def visit_keyword(self, node):
    if node.arg != "strict":
      self.visit(node.value)

  def visit_arg(self, node):
    self.bound[-1].add(node.arg)

  def visit_AnnAssign(self, node):
    if node.value:
      self.visit(node.value)

  def visit_Raise(self, node):
    self.drop(node)

  def visit_If(self, node):
    if ast.unparse(node.test) != "TYPE_CHECKING":
      self.condition(node.test)
      self.generic_visit(node)

  def visit_FunctionDef(self, node):
    self.bound.append(set())
    self.visit(node.args)
    self.body(node.body)
    self.bound.pop()

  visit_AsyncFunctionDef = visit_FunctionDef

  def visit_ClassDef(self, node):
    self.body(node.body)

  def visit_Module(self, node):
    self.body(node.body)

  def body(self, nodes):
    for node in nodes:
      self.visit(node)

  # Edits of text.

  def edit(self, node, text: str, kind: str):
    """Another text in a node's place, if it stands on one line."""
    if node.lineno == node.end_lineno:
      self.edits.append((node.lineno, node.col_offset, node.end_col_offset, text, kind))

  def text(self, node) -> str:
    return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()

  def between(self, left, right, pattern: str, text: str, kind: str):
    """What stands between two nodes of one line and is `pattern`, as `text`."""
    if left.end_lineno != right.lineno:
      # An operator at the end of its line, or at the beginning of the next.
      for number, begin, end in (
        (left.end_lineno, left.end_col_offset, None),
        (right.lineno, 0, right.col_offset),
      ):
        found = re.search(pattern.encode(), self.lines[number - 1][begin:end])
        if found:
          at = begin + found.start(), begin + found.end()
          self.edits.append((number, *at, text, kind))
          return
      return
    begin = left.end_col_offset
    if found := re.search(
      pattern.encode(), self.lines[left.end_lineno - 1][begin : right.col_offset]
    ):
      at = begin + found.start(), begin + found.end()
      self.edits.append((left.end_lineno, *at, text, kind))

  def drop(self, node):
    """A statement left out."""
    self.edit(node, "pass", "a statement left out")

  def leave_out(self, nodes, minimum: int, kind: str):
    """One of several that commas part, with its comma."""
    if len(nodes) < minimum:
      return
    for first, last in nodes:
      if first.lineno != last.end_lineno:
        continue
      line = self.lines[first.lineno - 1]
      begin, end = first.col_offset, last.end_col_offset
      if after := re.match(rb"\s*,[ ]?", line[end:]):
        end += after.end()
      elif before := re.search(rb",\s*$", line[:begin]):
        begin = before.start()
      else:  # its comma stands on another line
        continue
      self.edits.append((first.lineno, begin, end, "", kind))

  # What is mutated.

  def visit_Expr(self, node):
    if isinstance(node.value, ast.Constant):  # a docstring
      return
    if isinstance(node.value, ast.Call):
      if _SPOKEN.fullmatch(ast.unparse(node.value.func)):
        return
      self.drop(node)
    self.visit(node.value)

  def visit_Assign(self, node):
    names = {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    if any(getattr(t, "id", "") == "__all__" for t in node.targets):
      return
    # Without its first assignment a name is an error at once, which says little of the tests.
    plain = all(isinstance(t, ast.Name) for t in node.targets)
    if not plain or names <= self.bound[-1]:
      self.drop(node)
    self.bound[-1] |= names
    self.visit(node.value)

  def visit_AugAssign(self, node):
    self.drop(node)
    self.visit(node.value)

  def visit_Delete(self, node):
    self.drop(node)

  def visit_Continue(self, node):
    self.edit(node, "break", "continue to break")

  def visit_Break(self, node):
    self.edit(node, "continue", "break to continue")

  def condition(self, test):
    if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.NamedExpr):
      self.edit(test, f"not ({self.text(test)})", "a condition turned")

  def visit_While(self, node):
    self.condition(node.test)
    self.generic_visit(node)

  def visit_IfExp(self, node):
    self.condition(node.test)
    self.generic_visit(node)

  def visit_comprehension(self, node):
    for test in node.ifs:
      self.condition(test)
    self.generic_visit(node)

  def visit_Compare(self, node):
    left = node.left
    for operator, right in zip(node.ops, node.comparators, strict=True):
      new = _COMPARE[type(operator)]
      old = {ast.In: r"\bin\b", ast.NotIn: r"\bnot\s+in\b", ast.Is: r"\bis\b"}.get(type(operator))
      old = old or {ast.IsNot: r"\bis\s+not\b"}.get(type(operator)) or r"[<>=!]=?"
      self.between(left, right, old, new, "a comparison flipped")
      left = right
    self.generic_visit(node)

  def visit_BoolOp(self, node):
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
      self.between(left, right, rf"\b{old}\b", new, f"{old} to {new}")
    self.generic_visit(node)

  def visit_UnaryOp(self, node):
    if isinstance(node.op, ast.Not | ast.USub | ast.Invert) and node.lineno == node.end_lineno:
      kind = "not left out" if isinstance(node.op, ast.Not) else "a sign turned"
      self.edit(node, self.text(node)[len("not") :].lstrip() if kind[0] == "n" else
                self.text(node)[1:], kind)  # fmt: skip
    self.generic_visit(node)

  def visit_BinOp(self, node):
    joins = isinstance(node.op, ast.Add) and _is_text(node)
    if type(node.op) in _BINARY and not joins:
      new = _BINARY[type(node.op)]
      self.between(node.left, node.right, r"//|[-+*/&|]", new, "an operator changed")
    self.generic_visit(node)

  def visit_Constant(self, node):
    value = node.value
    if isinstance(value, bool):
      self.edit(node, str(not value), "a constant turned")
    elif isinstance(value, int | float):
      self.edit(node, f"{value + 1!r}", "a constant changed by one")
      self.edit(node, f"{value - 1!r}" if value >= 1 else f"({value - 1!r})",
                "a constant changed by one")  # fmt: skip

  def visit_Name(self, node):
    if node.id in _NAMES:
      self.edit(node, _NAMES[node.id], f"{node.id} to {_NAMES[node.id]}")

  def visit_Attribute(self, node):
    if node.attr in _NAMES:
      line, end = node.end_lineno, node.end_col_offset
      self.edits.append((line, end - len(node.attr), end, _NAMES[node.attr],
                         f"{node.attr} to {_NAMES[node.attr]}"))  # fmt: skip
    self.generic_visit(node)

  def visit_Slice(self, node):
    for bound in (node.lower, node.upper):
      if bound is not None and not isinstance(bound, ast.Constant):
        self.edit(bound, f"({self.text(bound)}) + 1", "a slice off by one")
    self.generic_visit(node)

  def visit_Call(self, node):
    if _SPOKEN.fullmatch(ast.unparse(node.func)):
      return
    if getattr(node.func, "id", "") == "range" and not isinstance(node.args[-1], ast.Constant):
      self.edit(node.args[-1], f"({self.text(node.args[-1])}) - 1", "a range off by one")
    every = [(a, a) for a in node.args] + [(k, k) for k in node.keywords]
    keywords = {id(k) for k in node.keywords if k.arg not in (None, "strict")}
    if every:
      self.leave_out_of(every, keywords)
    self.generic_visit(node)

  def leave_out_of(self, every, wanted):
    """Keyword arguments left out: an only one has no comma."""
    for first, last in every:
      if id(first) not in wanted:
        continue
      if len(every) == 1:
        self.edit(first, "", "a keyword argument left out")
      else:
        self.leave_out([(first, last)], 1, "a keyword argument left out")

  def visit_Tuple(self, node):
    if isinstance(node.ctx, ast.Load):
      self.leave_out([(e, e) for e in node.elts], 3, "an element left out")
    self.generic_visit(node)

  def visit_List(self, node):
    self.leave_out([(e, e) for e in node.elts], 2, "an element left out")
    self.generic_visit(node)

  visit_Set = visit_List

  def visit_Dict(self, node):
    pairs = [(k or v, v) for k, v in zip(node.keys, node.values, strict=True) if k]
    self.leave_out(pairs, 2, "an element left out")
    self.generic_visit(node)


def _is_text(node: ast.AST) -> bool:
  """Whether a sum joins strings, as far as one sees."""
  return any(
    isinstance(n, ast.JoinedStr)
    or (isinstance(n, ast.Constant) and isinstance(n.value, str | bytes))
    for n in ast.walk(node)
  )


def mutations_of(source: str, file: str) -> list[Mutation]:
  """Every mutation of a file, in the order of its lines; `is_real` says which are to be had."""
  finder = _Finder(source)
  finder.visit(ast.parse(source))
  lines, found = source.split("\n"), set()
  for number, begin, end, text, kind in finder.edits:
    line = lines[number - 1].encode()
    after = (line[:begin] + text.encode() + line[end:]).decode().rstrip()
    if after != lines[number - 1]:
      found.add(Mutation(file, number, lines[number - 1], after, kind))
  return sorted(found)


def is_real(mutation: Mutation, source: str) -> bool:
  """Whether the file is still Python, and other code."""
  try:
    return ast.dump(ast.parse(mutation.apply(source))) != ast.dump(ast.parse(source))
  except SyntaxError:
    return False


def draw(root: Path, seed: str, n: int, rooms: Iterable[str] = ROOMS) -> list[Mutation]:
  """`n` mutations: a room after the other, of it a line, of that one mutation.

  The first of a larger draw are those of a smaller one.
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


def tests_of(root: Path, file: str) -> list[str]:
  """The test files that mirror a file, then those that import it, by themselves or a helper."""
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
# A plugin of pytest in the copy: a test that hangs ends its process with a code of its own.
_PLUGIN = """
import os, signal, pytest

ERR = os.dup(2)  # pytest captures the other

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
  """A copy of the tree in a folder of its own, which mutations are tried in, one at a time.

  Args:
    root: of the tree.
    folder: an empty one.
    limit: seconds after which a test hangs.
  """

  def __init__(self, root: Path, folder: Path, limit: int = TEST_LIMIT):
    self.limit = limit
    self.root, self.tree, self.cache = root, folder / "tree", folder / "cache"
    # Generated folders and what git keeps; `shared`, which some tests read, lies beside the tree.
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs")
    shutil.copytree(root, self.tree, ignore=left_out)
    (folder / "plugin").mkdir()
    (folder / "plugin" / "hangs.py").write_text(_PLUGIN)
    if (shared := root.parent / "shared").is_dir():
      (folder / "shared").symlink_to(shared)
    self.plugin = folder / "plugin"

  def pytest(self, *arguments: str) -> tuple[int | None, str]:
    """(exit code or None after too long, output) of pytest on one process."""
    # Tokens of the mutation before would be read in place of this one's.
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
      with contextlib.suppress(ProcessLookupError):  # what the tests started goes with it
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()

  def write(self, file: str, text: str) -> None:
    """Other code, which no compiled file of before stands for."""
    path = self.tree / file
    path.write_text(text)
    for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
      old.unlink()

  def try_out(self, mutation: Mutation) -> dict:
    """What became of a mutation: {'outcome', 'stage', 'by', 'seconds'}."""
    began = time.monotonic()
    source = (self.root / mutation.file).read_text()
    near = tests_of(self.root, mutation.file)
    ignored = [f"--ignore={path}" for path in near]
    stages = {"fast": ["-m", "not slow", *ignored], "slow": ["-m", "slow", *ignored]}
    if near:  # of these, too, those that are soon done come first
      own = {"near": ["-m", "not slow", *near], "near, slow": ["-m", "slow", *near]}
      stages = own | stages
    self.write(mutation.file, mutation.apply(source))
    found = {"outcome": "survived", "stage": "slow", "by": ""}
    for stage, arguments in stages.items():
      code, out = self.pytest(*arguments)
      if code in (0, 5):  # 5: no test is left to run
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
  """The test that noticed, or in what way none came so far."""
  if code is None:
    return "hangs: a whole stage"
  if hangs := re.search(r"^HANGS (.+)$", out, re.MULTILINE):
    return f"hangs: {hangs[1]}"
  if failed := re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.+?)?)(?: - |$)", out, re.MULTILINE):
    return failed[1]
  return f"exit code {code}: {out.strip()[-200:]}"


def known_equal(path: Path = EQUAL) -> dict[tuple[str, str, str], str]:
  """(file, line before, line after) -> why the mutation has no consequence."""
  if not path.exists():
    return {}
  return {
    (x["file"], x["before"].strip(), x["after"].strip()): x["reason"]
    for x in json.loads(path.read_text())
  }


def _equal_key(mutation: Mutation) -> tuple[str, str, str]:
  return mutation.file, mutation.before.strip(), mutation.after.strip()


def read_results(path: Path, seed: str) -> dict[tuple, dict]:
  """A seed's results by mutation; of two of one mutation the later."""
  if not path.exists():
    return {}
  rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
  return {(r["file"], r["line"], r["before"], r["after"]): r for r in rows if r["seed"] == seed}


def summary(drawn: list[Mutation], results: dict[tuple, dict]) -> str:
  """Killed and survived, what has no consequence, and each survivor as a diff."""
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
  parser.add_argument("--again", action="store_true", help="try survivors again: tests were added")
  parser.add_argument("--list", action="store_true", help="print what is drawn, and stop")
  flags = parser.parse_args(argv)
  drawn = draw(ROOT, flags.seed, flags.n, flags.rooms.split(","))
  if flags.list:
    print("\n".join(one.diff() + "\n" for one in drawn))
    return 0
  results = read_results(flags.results, flags.seed)
  equal = known_equal()
  waiting = [
    one
    for one in drawn
    if _equal_key(one) not in equal
    and (one.key not in results or (flags.again and results[one.key]["outcome"] == "survived"))
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
        found = copy.try_out(mutation)
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
