"""Chat templates: Jinja programs from checkpoints, rendered within limits of time and memory.

A checkpoint's template is not trusted. transformers' sandbox keeps it from files and from Python's
internals, but not from looping forever or taking all memory. Here it is compiled in the same
sandbox, so that it renders the same text, and steps are counted: each turn of a loop, call, filter,
and operator that can make a large value. A template that exceeds the limits in a row of the data is
an error of that row.
"""

import contextvars
import functools
import re
import time
from collections.abc import Callable, Mapping, MappingView, Sequence
from typing import Any

from rm_jax.errors import InputError

# Limit of steps in one rendering. `_Budget` adds an allowance that grows with the number of
# messages and its square: existing templates take about ten steps a message, and some compare each
# message with all others.
_STEPS = 200_000
_SECONDS = 5.0  # of this thread's CPU time, which does not depend on how busy the machine is
# _LARGEST: the most characters of one text, or elements of one list. _ALL: the most of all texts
# and lists together that one rendering makes on the way. `_Budget` adds an allowance for the
# messages: a template that appends message by message copies the text so far each time, turns²/2
# messages in all. Existing templates add thousands of characters to the messages; a million take
# about a second to tokenise.
_LARGEST, _ALL = 2**20, 2**28
_BITS = 2**16  # the most bits of a product or power of integers
_SOURCE = 2**20  # the most characters of a template; the longest existing have about 20,000
# Format strings that ask for a wide field, or for a width given by an argument or a nested field.
_FORMAT = re.compile(r"[%:{][^a-zA-Z%}]*\d{6}|%[^a-zA-Z%]*\*|\{[^{}]*\{")
_WIDTHS = ("center", "ljust", "rjust", "zfill")
# Filters that take long for each character or element, and the most of these in their input. A
# filter counts as one step and cannot be stopped once it runs, so its input is limited.
_SLOW = ("sort", "unique", "groupby", "dictsort", "urlize")
_SLOW_LARGEST = 2**17
# Filters that convert any value to text. Their input and arguments are measured before: the text of
# lists in lists can be longer than all memory, although each list is made only once.
_WRITE = (
  "string", "tojson", "pprint", "urlencode", "xmlattr", "escape", "e", "forceescape", "safe",
  "lower", "upper", "title", "capitalize", "trim", "striptags", "wordcount", "center", "indent",
  "wordwrap", "replace", "format", "urlize",
)  # fmt: skip
_WRITE_TESTS = ("lower", "upper")  # `x is upper` converts x to text, too.
# Functions and methods whose error has the text of an argument in its message.
_REPORT = ("raise_exception", "index")


class LimitError(Exception):
  """A template takes, or might take, more steps, time or memory than a conversation can need."""


class _Budget:
  """What one rendering may still use; see `_STEPS` and the constants below it."""

  def __init__(self, size: int, turns: int):
    self.most = self.steps = _STEPS + 100 * turns + turns**2
    self.largest = _LARGEST + 16 * size
    self.all = _ALL + (16 + 2 * turns) * size
    self.until = time.thread_time() + _SECONDS

  def step(self) -> None:
    self.steps -= 1
    if self.steps < 0:
      raise LimitError(f"it takes more than {self.most:,} steps")
    if time.thread_time() > self.until:
      raise LimitError(f"it takes more than {_SECONDS:.0f} seconds")

  def check(self, size: int) -> None:
    """Raises LimitError if a text or a list of this size may not be made."""
    if size > self.largest:
      raise LimitError(f"it makes a text or a list of {size:,}; expected at most {self.largest:,}")

  def charge(self, size: int) -> None:
    """Subtracts a text or a list of this size from the budget; LimitError if it is too large."""
    self.check(size)
    self.all -= size
    if self.all < 0:
      raise LimitError("the texts and lists that it makes are too large together")

  def made(self, value: Any) -> Any:
    """Charges a result, if it is a text or a list, and returns it."""
    if isinstance(value, str | bytes | list | tuple):
      self.charge(len(value))
    return value

  def written(self, value: Any) -> int:
    """About how many characters a value has when converted to text; LimitError if too many."""
    total, waiting = 0, [value]
    while waiting:
      one = waiting.pop()
      if isinstance(one, str | bytes):
        total += len(one)
        continue
      total += 32
      if one is None or isinstance(one, int | float):
        pass
      elif isinstance(one, Mapping):
        waiting += [*one.keys(), *one.values()]
      elif isinstance(one, list | tuple | set | frozenset | MappingView):
        waiting += one
      elif isinstance(one, _namespace()):  # its __dict__ is hidden from all but `object`
        waiting.append(object.__getattribute__(one, "__dict__"))
      self.check(total + len(waiting))
    self.check(total)
    return total


@functools.cache
def _namespace() -> type:
  from jinja2.utils import Namespace

  return Namespace


_BUDGET: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("budget", default=None)


def render(template: str, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
  """Renders a conversation to the text that transformers' `apply_chat_template` gives.

  It is safe to call this in any thread.

  Args:
    template: Jinja source.
    messages: each with 'role' and 'content'.
    variables: what else the template may use, such as the tokenizer's special tokens and
      `add_generation_prompt`.

  Raises:
    jinja2.TemplateError: the syntax is wrong, or the template refuses the messages or reads what is
      undefined.
    LimitError: the template exceeds a limit.
    Exception: any other that Python's operators and methods raise in the template.
  """
  compiled = _compiled(template)
  size = sum(len(m["role"]) + len(m["content"]) for m in messages)
  token = _BUDGET.set(_Budget(size, len(messages)))
  try:
    copies = [dict(m) for m in messages]
    return compiled.render(messages=copies, tools=None, documents=None, **variables)
  finally:
    _BUDGET.reset(token)


def check(template: str, *, option: str = "chat_template", **variables: Any) -> None:
  """Renders a conversation of two turns, to find a broken template before the data are read.

  A template may refuse this conversation, or fail because something that it reads is undefined (a
  message that is not there), and still render others. That is no error here; each row of the data
  with which it happens is one.

  Args:
    template: Jinja source.
    option: how another template can be set, for the message.
    variables: as of `render`.

  Raises:
    InputError: the syntax is wrong, or rendering exceeded a limit or failed in Python code; the
      message says why.
  """
  from jinja2 import TemplateError, TemplateSyntaxError

  turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
  try:
    for messages, opening in ((turns[:1], True), (turns, False)):
      render(template, messages, add_generation_prompt=opening, **variables)
  except Exception as error:
    if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
      return
    raise InputError(
      f"the chat template cannot be rendered: {type(error).__name__}: {error}; mend it, or set "
      f"another: {option}"
    ) from error


@functools.lru_cache(maxsize=32)
def _compiled(template: str):
  if len(template) > _SOURCE:
    raise LimitError(f"it has {len(template):,} characters; expected at most {_SOURCE:,}")
  return _environment().from_string(template)


@functools.cache
def _environment():
  """transformers' own Jinja environment, with counting added."""
  from jinja2 import nodes, pass_context
  from jinja2.sandbox import ImmutableSandboxedEnvironment
  from jinja2.visitor import NodeTransformer
  from transformers.utils.chat_template_utils import _compile_jinja_template

  def call(name: str, arguments: list, line: int):
    node = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    return node.set_lineno(line, override=True)

  class Counting(NodeTransformer):
    """Inserts a counted call into the body of each loop and macro, and makes `~` a call."""

    def visit_For(self, node):
      self.generic_visit(node)
      text = sum(len(data.data) for one in node.body for data in _texts(one, nodes))
      step = nodes.ExprStmt(call("turn", [nodes.Const(text)], node.lineno))
      node.body.insert(0, step.set_lineno(node.lineno, override=True))
      return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node):
      self.generic_visit(node)
      return call("joined", node.nodes, node.lineno)

  class Counted(ImmutableSandboxedEnvironment):
    """Counts steps and sizes; all else is as in the sandbox that transformers uses."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source, name, filename):
      tree = Counting().visit(super()._parse(source, name, filename))
      tree.set_environment(self)
      return tree

    def turn(self, text):
      _BUDGET.get().charge(text)  # the step is counted by `call`, which calls this

    def joined(self, *parts):
      budget = _BUDGET.get()
      budget.check(sum(map(budget.written, parts)))
      return "".join(map(str, parts))

    def call_binop(self, context, operator, left, right):
      budget = _BUDGET.get()
      budget.step()
      if operator == "+" and type(left) is str and type(right) is str:
        budget.charge(len(left) + len(right))
        return left + right
      _check_operator(budget, operator, left, right)
      return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):
      budget = _BUDGET.get()
      budget.step()
      args = _check_method(budget, __obj, args, kwargs)
      return budget.made(super().call(__context, __obj, *args, **kwargs))

  @pass_context  # Jinja then calls it only when rendering, and not for constants when compiling
  def finalize(context, value):
    budget = _BUDGET.get()
    budget.charge(len(value) if type(value) is str else budget.written(value))
    return value

  environment = _compile_jinja_template("").environment.overlay(
    optimized=False, finalize=finalize, cache_size=0
  )
  environment.__class__ = Counted

  class Measured(environment.undefined):
    """What is undefined; errors about it have the text of what it was looked up by."""

    __slots__ = ()

    @property
    def _undefined_message(self):
      _BUDGET.get().written(self._undefined_name)
      return super()._undefined_message

  environment.undefined = Measured
  environment.globals = {k: v for k, v in environment.globals.items() if k != "lipsum"}
  filters, tests = environment.filters, environment.tests
  environment.filters = {name: _counted(name, filters[name]) for name in filters}
  environment.tests = tests | {name: _measured(tests[name]) for name in _WRITE_TESTS}
  return environment


def _texts(node, nodes) -> list:
  found = list(node.find_all(nodes.TemplateData))
  return [*found, node] if isinstance(node, nodes.TemplateData) else found


def _check_operator(budget: _Budget, operator: str, left: Any, right: Any) -> None:
  sized = (str, bytes, list, tuple)
  whole = isinstance(left, int) and isinstance(right, int)
  if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
    budget.check(len(left) + len(right))
  elif operator == "*" and isinstance(left, sized) and isinstance(right, int):
    budget.check(len(left) * right)
  elif operator == "*" and isinstance(left, int) and isinstance(right, sized):
    budget.check(left * len(right))
  elif operator == "*" and whole and left.bit_length() + right.bit_length() > _BITS:
    raise LimitError(f"it multiplies to a number of more than {_BITS:,} bits")
  elif operator == "**" and whole and left.bit_length() * abs(right) > _BITS:
    raise LimitError(f"it raises to a number of more than {_BITS:,} bits")
  elif operator == "%" and isinstance(left, str):
    _check_format(budget, left, right)


def _check_format(budget: _Budget, form: str, *values: Any) -> None:
  if _FORMAT.search(form):
    raise LimitError("it formats to a width that is too large or comes from elsewhere")
  # A value may be formatted many times.
  times = 1 + form.count("{") + form.count("%")
  budget.check(times * budget.written(values) + len(form) * 10**5 * bool(re.search(r"\d{5}", form)))


def _check_replace(budget: _Budget, text: str, old: Any = "", new: Any = "", *_count: Any) -> None:
  budget.written([old, new])
  found = text.count(str(old)) if old else len(text) + 1
  budget.check(len(text) + found * len(str(new)))


def _check_join(budget: _Budget, parts: Any, between: Any = "") -> None:
  budget.check(budget.written([parts, between]) + len(parts) * len(str(between)))


def _check_method(budget: _Budget, function: Callable, args: Sequence, kwargs: Mapping) -> Sequence:
  """Bounds what a string's method, or the message of an error, will be, before the call.

  Returns:
    the arguments to call it with (that of `join` becomes a list, to be measured first).

  Raises:
    LimitError: the result may be too large, or the method is not bounded here.
  """
  inner = getattr(function, "__wrapped__", function)
  text, name = getattr(inner, "__self__", None), getattr(inner, "__name__", "")
  if name in _REPORT:
    budget.written([*args, *kwargs.values()])
  if not isinstance(text, str | bytes):
    return args
  numbers = [x for x in (*args, *kwargs.values()) if isinstance(x, int)]
  if name in _WIDTHS:
    budget.check(max([0, *numbers]))
  elif name == "expandtabs":
    budget.check(len(text) + len(text) * max([8, *numbers]))
  elif name == "replace" and len(args) > 1:
    _check_replace(budget, text, *args)
  elif name == "join" and args:
    args = [list(args[0]), *args[1:]]
    _check_join(budget, args[0], text)
  elif name in ("format", "format_map"):
    _check_format(budget, text, args, kwargs)
  elif name in ("translate", "maketrans"):
    raise LimitError(f"it calls {name!r} of a text")
  return args


def _measured(test: Callable) -> Callable:
  """Wraps a test of a value's text, which is measured first."""

  def measured(value):
    _BUDGET.get().written(value)
    return test(value)

  return measured


def _counted(name: str, function: Callable) -> Callable:
  """Wraps a filter: counts a step, bounds what some filters will make, and charges the result."""
  first = 1 if hasattr(function, "jinja_pass_arg") else 0  # index of the filtered value

  @functools.wraps(function)
  def counted(*args, **kwargs):
    budget = _BUDGET.get()
    budget.step()
    args = list(args)
    value, rest = args[first], [*args[first + 1 :], *kwargs.values()]
    numbers = [x for x in rest if isinstance(x, int)]
    if name in _WRITE:
      budget.written([value, *rest])
    if name in ("tojson", "pprint") and max([0, *numbers]) > 100:
      raise LimitError(f"it indents by {max(numbers)}; expected at most 100")
    elif name in _SLOW:
      value = args[first] = value if hasattr(value, "__len__") else list(value)
      if len(value) > _SLOW_LARGEST:
        raise LimitError(f"{name} of {len(value):,}; expected at most {_SLOW_LARGEST:,}")
    elif name == "center" or name == "batch" or name == "slice":
      budget.check(max([0, *numbers]))
    elif name == "indent":
      width = max([4, *numbers, *(len(x) for x in rest if isinstance(x, str))])
      budget.check(len(str(value)) + width * (str(value).count("\n") + 1))
    elif name == "wordwrap":
      between = max([1, *(len(x) for x in rest if isinstance(x, str))])
      budget.check(len(str(value)) * (1 + between))
    elif name == "replace" and len(rest) > 1:
      _check_replace(budget, str(value), *rest)
    elif name == "format":
      _check_format(budget, str(value), rest)
    elif name == "join":
      value = args[first] = list(value)
      _check_join(budget, value, rest[0] if rest else "")
    elif name == "sum" and not all(isinstance(x, str | int | float | None) for x in rest):
      raise LimitError("it sums what are no numbers")
    return budget.made(function(*args, **kwargs))

  return counted
