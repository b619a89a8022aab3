"""The page shows what the report says, and nothing else."""

import html
import html.parser
import io
import json
import re

import matplotlib.image
import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.comparisons import one_each
from rm_jax.audit.reference import Reference, make_reference
from rm_jax.audit.run import audit
from rm_jax.audit.scorer import Counts
from rm_jax.audit.section import Settings
from rm_jax.audit.sections import drift
from rm_jax.audit.writer import number
from rm_jax.data.dialogue import plain
from rm_jax.storage import pictures
from rm_jax.world import World
from tests.audit.planted import length, noise, noisy, truth

WORLD = World()
SKILLED = World(skill=0.3)
SKILLED_ROWS = [
  (prompt, candidate.response)
  for prompt in SKILLED.prompts("heldout", 8, 5)
  for candidate in SKILLED.sample(prompt, 256, np.random.default_rng(0))
]


class Fake:
  """A scorer as `audit` takes it, without a model; its features are made of the score."""

  name, outputs, attributes = "fake", 1, ()

  def __init__(self, score):
    self.score = score
    self.counts = Counts()

  def __call__(self, rows):
    return np.asarray(self.score(rows), np.float32)

  def members(self, rows):
    return self(rows)[:, None]

  def pooled(self, rows, beside=()):
    scores = self(rows)
    return np.stack([scores, scores**2, np.ones_like(scores)], axis=1)


class Ensemble(Fake):
  """An ensemble of three members with independent noise."""

  outputs = 3

  def members(self, rows):
    off = [[noise(f"{m}{plain(response)}") for m in range(3)] for _, response in rows]
    return (self(rows)[:, None] + 0.5 * np.asarray(off)).astype(np.float32)


def report_of(score, examples=None, make=Fake, **options):
  examples = examples or WORLD.pairs("heldout", 120, 0)
  scorer = make(score)
  reference = make_reference(scorer, WORLD.pairs("heldout", 150, 1), "world")
  settings = Settings(edited_pairs=40, world=WORLD, prompts=6, candidates=64)
  found = audit(scorer, examples, reference=reference, settings=settings, **options)
  return {"about": {"model": "m<1>", "data": "world:120", "examples": 120}, **found}


@pytest.fixture(scope="module")
def report():
  return report_of(noisy(truth(WORLD), 0.5), against={"by length": Fake(length)})


def test_pictures_have_titles_and_do_not_cut_their_text_off(report, monkeypatch):
  figures, png_of = [], pictures.png

  def recorded(figure, dpi):
    figures.append(figure)
    return png_of(figure, dpi)

  monkeypatch.setattr(pictures, "png", recorded)
  drawn = page.pictures(report)[0]
  assert len(figures) == len(drawn) > 5
  for figure in figures:
    # A picture of one part has its heading on the page above it.
    titles = {axis.get_title() for axis in figure.axes}
    assert len(titles) == len(figure.axes)
    assert titles == {""} or all(titles), titles
  for name, png in drawn.items():
    ink_HW = (matplotlib.image.imread(io.BytesIO(png))[..., :3] < 0.9).any(-1)
    ink_HW[4:-4, 4:-4] = False  # whole text keeps clear of the edge
    assert not ink_HW.any(), name


class Numbers(html.parser.HTMLParser):
  """Collects (path, text) of each number on a page, its images and its links."""

  def __init__(self):
    super().__init__()
    self.path, self.found, self.images, self.links = None, [], [], []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.path = attrs.get("data-path")
    if tag == "img":
      self.images.append(attrs["src"])
    self.links += [v for k, v in attrs.items() if k in ("src", "href")]

  def handle_data(self, data):
    if self.path:
      self.found.append((self.path, data))
      self.path = None


def test_every_number_on_the_page_is_the_reports(report, tmp_path):
  assert page.write(tmp_path, report) == {}
  said = json.loads((tmp_path / "report.json").read_text())
  parser = Numbers()
  text = (tmp_path / "report.html").read_text()
  parser.feed(text)
  assert len(parser.found) > 300
  for path, shown in parser.found:
    here = said
    for key in path.split("/"):
      here = here[int(key)] if isinstance(here, list) else here[key]
    if isinstance(here, float):
      assert float(shown.replace(",", "")) == pytest.approx(here, abs=5.1e-4), path
    else:
      assert shown == number(here), path
  sections_shown = set(re.findall(r"<h2 id=(\w+)>", text))
  assert sections_shown == {
    "agreement",
    "compare",
    "controls",
    "calibration",
    "robustness",
    "drift",
    "hacking",
    "overoptimisation",
    "best_of",
    "rules",
  }


def test_the_page_needs_no_other_file(report, tmp_path):
  page.write(tmp_path, report)
  parser = Numbers()
  parser.feed((tmp_path / "report.html").read_text())
  assert all(link.startswith("data:") for link in parser.links)
  pngs = {p.name for p in tmp_path.glob("*.png")}
  assert len(parser.images) == len(pngs) >= 6
  assert "best_of_n_world.png" in pngs
  assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pngs)


def test_text_is_shown_as_text(report, tmp_path):
  page.write(tmp_path, report)
  text = (tmp_path / "report.html").read_text()
  assert "m&lt;1&gt;" in text
  assert "m<1>" not in text


def test_a_scorer_of_length_is_called_so():
  found = report_of(length)
  assert found["hacking"]["measures"]["characters"]["partial"]["value"] > 0.95
  assert any("length" in line for line in found["hacking"]["says"])
  assert "length" in found["controls"]["says"] or "longest" in found["controls"]["says"]


def test_what_has_no_data_says_why(tmp_path):
  examples = WORLD.pairs("heldout", 40, 0)
  scorer = Fake(noisy(truth(WORLD)))
  found = audit(scorer, examples, settings=Settings(edited_pairs=10))
  assert "--reference" in found["drift"]["why"]
  assert "other model" in found["compare"]["why"]
  assert "no curve" in found["overoptimisation"]["why"]
  page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found})
  assert "Not measured: no other model was given." in (tmp_path / "report.html").read_text()


def exploited(rows):
  """The true reward, but far more for bad and long responses, which are rare."""
  score = truth(SKILLED)(rows)
  bad = np.array([len(plain(r)) > 75 for _, r in rows]) & (score < 0)
  return score + 10 * bad + 1e-3 * np.array([noise(r) for _, r in rows])


@pytest.mark.slow
@pytest.mark.parametrize("peaks", [False, True])
def test_the_page_says_whether_the_truth_peaks(peaks, tmp_path):
  score = exploited if peaks else noisy(truth(SKILLED), 1.0)
  settings = Settings(edited_pairs=10, world=SKILLED, prompts=12, candidates=512)
  found = audit(Fake(score), SKILLED.pairs("heldout", 30, 0), settings=settings)
  curve = found["overoptimisation"]["world"]["variants"]["score"]
  assert curve["peak"]["peaks"] is peaks
  if peaks:
    # With a share h of exploits, the best of n is one with probability 1 - (1 - h)^n, which exceeds
    # 1/2 from n = 1 / h on.
    share = np.mean(exploited(SKILLED_ROWS) > 5)
    assert 2 <= curve["peak"]["n"] <= 1 / share < 512
    assert curve["true"][-1]["value"] < 0
  page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found})
  assert html.escape(curve["peak"]["statement"]) in (tmp_path / "report.html").read_text()


def test_one_response_of_each_conversation():
  examples = WORLD.pairs("heldout", 30, 0)
  rows = one_each([*examples, *examples], 20, 0)
  assert len(rows) == 20
  assert len({str(prompt) for prompt, _ in rows}) == 20
  chosen = {str(e.responses[0]) for e in examples}
  share = np.mean([str(response) in chosen for _, response in rows])
  assert 0.1 < share < 0.9


def test_the_reference_is_of_the_model(tmp_path):
  made = make_reference(Fake(length), WORLD.pairs("heldout", 30, 0), "d", limit=25)
  made.save(tmp_path)
  kept = Reference.load(tmp_path)
  assert (len(kept.scores), kept.data, kept.model) == (25, "d", "fake")


def test_a_reference_too_small_to_compare_with_leaves_the_rest_of_the_page():
  scorer, examples = Fake(length), WORLD.pairs("heldout", 30, 0)
  few = make_reference(scorer, examples, "my run", limit=16)
  found = audit(scorer, examples, reference=few, settings=Settings(edited_pairs=10))
  assert "30 conversations against 16 of my run" in found["drift"]["why"]
  assert found["agreement"]["n"] == 30


def test_an_ensembles_disagreement_needs_no_reference(tmp_path):
  scorer, examples = Ensemble(noisy(truth(WORLD), 1.0)), WORLD.pairs("heldout", 60, 0)
  found = audit(scorer, examples, settings=Settings(edited_pairs=10))
  assert found["drift"]["why"].startswith("no reference is kept")
  assert found["drift"]["disagreement"]["auroc"]["n"] > 0
  page.write(tmp_path, {"about": {"model": "m", "data": "d", "examples": 60}, **found})
  shown = (tmp_path / "report.html").read_text()
  assert "Not measured: no reference is kept" in shown
  assert 'data-path="drift/disagreement/auroc/value"' in shown


@pytest.mark.slow
def test_an_ensembles_disagreement_is_of_pairs_drawn_from_all(tmp_path, monkeypatch):
  monkeypatch.setattr(drift, "_ENSEMBLE_PAIRS", 40)
  asked = []

  class Watched(Ensemble):
    def members(self, rows):
      asked.append([prompt for prompt, _ in rows])
      return super().members(rows)

  examples = WORLD.pairs("heldout", 120, 0)
  report = report_of(noisy(truth(WORLD), 1.0), examples, make=Watched)
  found = report["drift"]["disagreement"]
  assert found["auroc"]["n"] + found["ties"] == 40
  assert 0 < found["wrong"] < 20
  place = {plain(example.prompt): i for i, example in enumerate(examples)}
  (drawn,) = [[place[plain(p)] for p in rows[::2]] for rows in asked if len(rows) == 80]
  assert max(drawn) > 100  # and not the first 40
  page.write(tmp_path, report)
  shown = (tmp_path / "report.html").read_text()
  for name in ("auroc", "margin"):
    assert f'data-path="drift/disagreement/{name}/value"' in shown


def test_an_interrupted_write_leaves_the_old_reference(tmp_path, monkeypatch):
  made = make_reference(Fake(length), WORLD.pairs("heldout", 30, 0), "d", limit=25)
  made.save(tmp_path)

  def killed(file, **arrays):
    file.write(b"PK")
    raise KeyboardInterrupt

  monkeypatch.setattr(np, "savez", killed)
  with pytest.raises(KeyboardInterrupt):
    made.save(tmp_path)
  assert Reference.load(tmp_path).data == "d"
