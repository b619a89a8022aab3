"""Draws comments and docstrings at random, to see whether a stranger can restate each of them.

    python -m tests.studies.words [--root FOLDER] [--number 20] [--seed 7]

Give a reader the printed texts together with the file that each is from and nothing else, and count
how many they restate correctly. The population is every docstring of a module, class or function
and every comment in `rm_jax/` and `experiments/`, listed in sorted order of the files, so the same
checkout gives the same draw; `--root` names another checkout, for a draw before and after a change.

The last lines count how often the field's standard terms occur in those texts. A term that never
occurs is one that a search will not find.
"""

import argparse
import ast
import io
import random
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("rm_jax", "experiments")
TERMS = ("sharded", "gradient accumulation", "rematerialisation", "padding", "pooling")
_DIRECTIVE = re.compile(r"#\s*(noqa|fmt:|ruff:|type:|pragma:)|#!")  # addressed to a tool


def docstrings(source: str) -> Iterator[tuple[int, str]]:
  """(line, text) of the docstrings of a module, its classes and its functions."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      text = ast.get_docstring(node)
      if text:
        yield node.body[0].lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
  """(line, text) of comments; consecutive lines that hold only a comment are one text.

  A comment behind code is a text of its own, printed with that code: without it, it says nothing.
  """
  block, start, last = [], 0, 0
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
      continue
    line = token.start[0]
    alone = token.line.lstrip().startswith("#")
    if block and not (alone and line == last + 1):
      yield start, "\n".join(block)
      block = []
    if not alone:
      yield line, token.line.strip()
      continue
    start = start if block else line
    last = line
    block.append(token.string)
  if block:
    yield start, "\n".join(block)


def texts(root: Path) -> list[tuple[str, int, str]]:
  """(file, line, text) of all docstrings and comments below a checkout's root, in sorted order."""
  found = []
  for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
    source = path.read_text()
    name = path.relative_to(root).as_posix()
    found += [(name, *one) for one in sorted([*docstrings(source), *comments(source)])]
  return found


def occurrences(population: list[tuple[str, int, str]]) -> dict[str, int]:
  """How often each of `TERMS` occurs as a whole word, in whatever case, line breaks ignored."""
  everything = " ".join(re.sub(r"\s+#?\s*", " ", text) for _, _, text in population).lower()
  return {term: len(re.findall(rf"\b{term}\b", everything)) for term in TERMS}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--root", type=Path, default=ROOT)
  parser.add_argument("--number", type=int, default=20)
  parser.add_argument("--seed", type=int, default=7)
  args = parser.parse_args()
  population = texts(args.root)
  for file, line, text in random.Random(args.seed).sample(population, args.number):
    print(f"{file}:{line}\n{text}\n")
  counts = ", ".join(f"{term} {count}" for term, count in occurrences(population).items())
  print(f"drawn from {len(population)} texts; {counts}")


if __name__ == "__main__":
  main()
