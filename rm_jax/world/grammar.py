"""Writes prompts and responses from the words, and reads them back from the text alone."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from rm_jax.world.words import SPLITS, Scene, Vocabulary


@dataclasses.dataclass(frozen=True)
class Task:
  """What a prompt says and wants.

  Attributes:
    words, scene: the tables that it is written in.
    facts: item -> value, as its note has them.
    item: the one asked about.
    layout: the one wanted.
    name: of the person who asks, by which the response should address them.
  """

  words: Vocabulary
  scene: Scene
  facts: dict[str, str]
  item: str
  layout: str
  name: str


@dataclasses.dataclass(frozen=True)
class Attributes:
  """What the true reward sees of a response.

  Attributes:
    fact: 1 if it names the value that the note gives for the item asked about and no other value of
      that kind, else 0.
    layout: 1 if it has the layout asked for, else 0.
    name: 1 if it names the person who asks, and no other; else 0.
    tone: -1 rude, 0 neutral (or both), 1 polite.
  """

  fact: int
  layout: int
  name: int
  tone: int


def _numbered(sentences: list[str]) -> str:
  return "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))


# Layout -> (writes sentences in it, pattern that a text in it matches).
LAYOUTS = {
  "list": (lambda s: "\n".join(f"- {x}" for x in s), r"- .*(\n- .*)*"),
  "numbers": (_numbered, r"\d+\. .*(\n\d+\. .*)*"),
  "quotes": (lambda s: f'"{" ".join(s)}"', r'"[^"]*"'),
  "brackets": (lambda s: f"({' '.join(s)})", r"\([^()]*\)"),
}


def draw(table: Sequence, rng: np.random.Generator):
  """One entry of a table, each as likely."""
  return table[int(rng.integers(len(table)))]


def write_prompt(words: Vocabulary, rng: np.random.Generator) -> str:
  """Three lines: who asks; a note of three entries; a question about one and the layout wanted."""
  scene = draw(words.scenes, rng)
  items = rng.choice(len(scene.items), 3, replace=False)
  values = rng.choice(len(scene.values), 3, replace=False)
  entry = draw(scene.entry, rng)
  entries = [
    entry.format(item=scene.items[i], value=scene.values[v])
    for i, v in zip(items, values, strict=True)
  ]
  intro = draw(words.intro, rng).format(name=draw(words.names, rng))
  note = ", ".join(entries) + "."
  question = draw(scene.ask, rng).format(item=scene.items[draw(items, rng)])
  wish = draw(words.layouts[draw(tuple(LAYOUTS), rng)], rng)
  return f"{intro}\n{note[0].upper()}{note[1:]}\n{question} {wish}"


def write_response(
  task: Task,
  value: str,
  layout: str,
  name: str,
  tone: int,
  fillers: int,
  rng: np.random.Generator,
) -> str:
  """A sentence with name and value, then one of the tone and fillers in any order."""
  words = task.words
  rest = [draw(words.tones[tone], rng)] if tone else []
  rest += [words.fillers[i] for i in rng.choice(len(words.fillers), fillers, replace=False)]
  rest = [rest[i] for i in rng.permutation(len(rest))]
  answer = draw(task.scene.answer, rng).format(item=task.item, value=value)
  write, _ = LAYOUTS[layout]
  return write([f"{name}, {answer}", *rest])


@functools.cache
def _pattern(table: tuple[str, ...]) -> re.Pattern:
  # A longer entry first, lest its beginning be found in its place.
  entries = sorted(table, key=len, reverse=True)
  return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, entries)) + r")(?!\w)", re.IGNORECASE)


@functools.cache
def _by_lower(table: tuple[str, ...]) -> dict[str, str]:
  return {entry.lower(): entry for entry in table}


def find(table: Iterable[str], text: str) -> list[str]:
  """The table's entries in the order in which the text names them, whatever their case."""
  table = tuple(table)
  return [_by_lower(table)[match.lower()] for match in _pattern(table).findall(text)]


@functools.lru_cache(maxsize=4096)
def read_prompt(prompt: str) -> Task:
  """The task that a prompt of this world sets.

  Raises:
    ValueError: the text is no prompt of this world.
  """
  lines = prompt.split("\n")
  for words in SPLITS.values() if len(lines) == 3 else ():
    intro, note, request = lines
    names = find(words.names, intro)
    layouts = [key for key, wishes in words.layouts.items() if request.endswith(wishes)]
    for scene in words.scenes:
      items, values = find(scene.items, note), find(scene.values, note)
      asked = find(scene.items, request)
      facts = dict(zip(items, values, strict=False))
      if len(items) == len(values) and len(names) == len(layouts) == len(asked) == 1:
        return Task(words, scene, facts, asked[0], layouts[0], names[0])
  raise ValueError(f"prompt: {prompt!r} is not one of this world's; expected one of World.prompts")


def read_response(task: Task, text: str) -> Attributes:
  """The attributes of any text as a response to the task."""
  _, pattern = LAYOUTS[task.layout]
  tone = sum(sign * bool(find(task.words.tones[sign], text)) for sign in (-1, 1))
  return Attributes(
    fact=int(set(find(task.scene.values, text)) == {task.facts[task.item]}),
    layout=int(bool(re.fullmatch(pattern, text))),
    name=int(set(find(task.words.names, text)) == {task.name}),
    tone=tone,
  )
