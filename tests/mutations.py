"""The one-line mutations of a module, for mutate.py: found in its syntax, made in its text."""

import ast
import dataclasses
import difflib
import re

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
