"""Writes prompts and responses from a vocabulary, and reads any text back into its attributes."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from rm_jax.world.words import SPLITS, Scene, Vocabulary


@dataclasses.dataclass(frozen=True)
class Task:
  """What a prompt states and asks for.

  Attributes:
    words, scene: the vocabulary and the scene that the prompt is written in.
    facts: item -> value, the entries of its note.
    item: the item that the question is about.
    layout: the layout that the response should have, a key of `LAYOUTS`.
    name: of the person who asks; the response should address them by it.
  """

  words: Vocabulary
  scene: Scene
  facts: dict[str, str]
  item: str
  layout: str
  name: str


@dataclasses.dataclass(frozen=True)
class Attributes:
  """The properties of a response that its true reward is computed from.

  Attributes:
    fact: 1 if the response names the value of the item asked about and no other value of the scene,
      else 0.
    layout: 1 if the response has the layout asked for, else 0.
    name: 1 if the response names the person who asks and nobody else, else 0.
    tone: -1 rude, 0 neutral (or both rude and polite), 1 polite.
  """

  fact: int
  layout: int
  name: int
  tone: int


def _numbered(sentences: list[str]) -> str:
  return "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))


# Layout -> (function that joins sentences in this layout, pattern that a whole text in it matches).
LAYOUTS = {
  "list": (lambda s: "\n".join(f"- {x}" for x in s), r"- .*(\n- .*)*"),
  "numbers": (_numbered, r"\d+\. .*(\n\d+\. .*)*"),
  "quotes": (lambda s: f'"{" ".join(s)}"', r'"[^"]*"'),
  "brackets": (lambda s: f"({' '.join(s)})", r"\([^()]*\)"),
}


def draw(table: Sequence, rng: np.random.Generator):
  """Draws one entry of a table uniformly."""
  return table[int(rng.integers(len(table)))]


def write_prompt(words: Vocabulary, rng: np.random.Generator) -> str:
  """Draws a prompt of three lines: who asks; a note of three entries; the question.

  The question is about one entry, and the wish for a layout follows it.
  """
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
  """Writes a response: a sentence with the name and the value, then the rest in random order.

  The rest is one sentence of the tone, if that is not 0, and `fillers` different filler sentences,
  which have no effect on the true reward. `value`, `layout` and `name` may differ from those that
  the task asks for: wrong candidates are written here as well.
  """
  words = task.words
  rest = [draw(words.tones[tone], rng)] if tone else []
  rest += [words.fillers[i] for i in rng.choice(len(words.fillers), fillers, replace=False)]
  rest = [rest[i] for i in rng.permutation(len(rest))]
  answer = draw(task.scene.answer, rng).format(item=task.item, value=value)
  write, _ = LAYOUTS[layout]
  return write([f"{name}, {answer}", *rest])


@functools.cache
def _pattern(table: tuple[str, ...]) -> re.Pattern:
  # Longer entries come first: of two entries that start alike, a regular expression matches the one
  # that it lists first.
  entries = sorted(table, key=len, reverse=True)
  return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, entries)) + r")(?!\w)", re.IGNORECASE)


@functools.cache
def _by_lower(table: tuple[str, ...]) -> dict[str, str]:
  return {entry.lower(): entry for entry in table}


def find(table: Iterable[str], text: str) -> list[str]:
  """The table's entries that occur in the text as whole words, in any case, in the text's order."""
  table = tuple(table)
  return [_by_lower(table)[match.lower()] for match in _pattern(table).findall(text)]


@functools.lru_cache(maxsize=4096)
def read_prompt(prompt: str) -> Task:
  """Reads the task that a prompt of this world sets.

  Raises:
    ValueError: the text is not a prompt of this world.
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
  """Reads the attributes of any text, even one not of this world, as a response to the task."""
  _, pattern = LAYOUTS[task.layout]
  tone = sum(sign * bool(find(task.words.tones[sign], text)) for sign in (-1, 1))
  return Attributes(
    fact=int(set(find(task.scene.values, text)) == {task.facts[task.item]}),
    layout=int(bool(re.fullmatch(pattern, text))),
    name=int(set(find(task.words.names, text)) == {task.name}),
    tone=tone,
  )
