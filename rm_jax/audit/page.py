"""The audit's page: one HTML file with its pictures inside, which needs no other file."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_jax.audit.section import Section, sentences, silent
from rm_jax.audit.sections import SECTIONS
from rm_jax.audit.writer import STYLE, View, Writer, escaped
from rm_jax.storage.files import write_atomically, write_json

log = logging.getLogger(__name__)


def write(
  folder: Path,
  report: Mapping[str, Any],
  sections: Sequence[Section] = SECTIONS,
  *,
  title: str = "Audit",
) -> dict[str, str]:
  """Writes report.json, report.html and the pictures as PNG files.

  Pictures that an earlier report in this folder names and this one lacks are deleted.

  Args:
    folder: created if it does not exist.
    report: the sections' reports, as `run.audit` returns them, with the key `about`: {model, data,
      ...} for the table at the top of the page, and optionally `scorer`: counts for the same table.
    sections: the sections that the page shows, in this order.
    title: what the page is, of the model.

  Returns:
    {name of a picture or part of the page that could not be made: error}. All others are written.

  Raises:
    ValueError: the report has a number that JSON cannot hold (NaN or infinity).
  """
  folder.mkdir(parents=True, exist_ok=True)
  before = _pictures_of(folder)
  # Converted to JSON and back, so that the page shows what report.json says.
  report = json.loads(json.dumps(report, allow_nan=False))
  drawn, failed = pictures(report, sections)
  report["pictures"] = sorted(drawn)
  for name, png in drawn.items():
    (folder / f"{name}.png").write_bytes(png)
  for name in before - drawn.keys():
    (folder / f"{name}.png").unlink(missing_ok=True)
  write_json(folder / "report.json", report)
  page = _Page(report, drawn, sections, title)
  write_atomically(folder / "report.html", page.html())
  return failed | page.failed


def _pictures_of(folder: Path) -> set[str]:
  """Names of the pictures that the report in a folder lists; none if it has no readable report."""
  try:
    named = json.loads((folder / "report.json").read_text(encoding="utf-8"))["pictures"]
  except (OSError, ValueError, KeyError, TypeError):
    return set()
  return {name for name in named if re.fullmatch(r"\w+", name)}


def pictures(
  report: Mapping[str, Any], sections: Sequence[Section] = SECTIONS
) -> tuple[dict[str, bytes], dict[str, str]]:
  """({name: PNG} of the pictures of a report's sections, {name: error} of those that failed)."""
  drawn: dict[str, bytes] = {}
  failed: dict[str, str] = {}

  def attempt(name: str, make: Callable[[], Any]) -> Any:
    try:
      return make()
    except Exception as error:  # a page without a picture is better than no page
      log.exception("the picture %s", name)
      text = " ".join(str(error).split())
      failed[f"the picture {name}"] = f"{type(error).__name__}: {text}"
      return None

  for section in sections:
    found = report.get(section.name)
    if found is None or section.draw is None or silent(found):
      continue
    draws = attempt(section.name, lambda draw=section.draw, found=found: draw(found))
    for name, draw in (draws or {}).items():
      if (png := attempt(name, draw)) is not None:
        drawn[name] = png
  return drawn, failed


class _Page(Writer):
  """Writes the whole page: its head, and for each section a heading, its findings and its body.

  Attributes:
    failed: name of a part that could not be written -> error.
  """

  def __init__(
    self,
    report: Mapping[str, Any],
    drawn: Mapping[str, bytes],
    sections: Sequence[Section],
    title: str = "Audit",
  ):
    super().__init__(drawn)
    self.title = escaped(f"{title} of {report['about']['model']}")
    self.report, self.sections = View(report), [s for s in sections if s.name in report]
    self.failed: dict[str, str] = {}

  def html(self) -> str:
    """The HTML document; a part that fails is recorded in `failed`. To be called once."""
    self._guarded("head", self._head)
    for section in self.sections:
      found = self.report[section.name]
      self.add(f"<h2 id={section.name}>{section.title}</h2>")
      if silent(found.value):
        self.add(f"<p class=why>Not measured: {escaped(found.value['why'])}.</p>")
      else:
        self._guarded(section.name, lambda s=section, found=found: self._body(s, found))
    return (
      f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{self.title}</title>"
      '<meta name=viewport content="width=device-width, initial-scale=1">'
      f'<link rel=icon href="data:,"><style>{STYLE}</style></head><body>\n'
      + "\n".join(self.parts)
      + "\n</body></html>\n"
    )

  def _guarded(self, name: str, make: Callable[[], None]) -> None:
    """Writes a part of the page or, if that raises an error, a line that says so in its place."""
    began = len(self.parts)
    try:
      make()
    except Exception as error:
      log.exception("the page's part %s", name)
      del self.parts[began:]
      self.failed[f"the page's part {name}"] = f"{type(error).__name__}: {error}"
      self.add(f"<p class=why>It could not be written; report.json has it: {escaped(error)}.</p>")

  def _head(self) -> None:
    about = self.report["about"]
    self.add(f"<h1>{self.title}</h1>")
    self.add(
      f"<p>On {escaped(about.value['data'])}. Intervals are 95 %, over conversations: of 30 and "
      "more by the bootstrap, of fewer by Student's t or Wilson's, of fewer than 5 there is "
      "none.</p>"
    )
    said = []
    for section in self.sections:
      found = self.report[section.name]
      said += [escaped(one) for one in sentences(found.value)]
      if section.summary and not silent(found.value):
        said += section.summary(self, found)
    for name, why in self.report.get("failed").items():
      said.append(f"<b>{escaped(name)} could not be measured</b>: {escaped(why.value)}")
    self.add("<ul>" + "".join(f"<li>{one}</li>" for one in said) + "</ul>")
    rows = [(escaped(key.replace("_", " ")), self.value(one)) for key, one in about.items()]
    for key, one in self.report.get("scorer").items():
      rows.append((f"texts {escaped(key)}", self.value(one)))
    self.table(("", ""), rows)

  def _body(self, section: Section, found: View) -> None:
    for one in sentences(found.value):
      self.add(f"<p class=says>{escaped(one)}</p>")
    section.render(self, found)
