"""Tokens from the disk are those that were made, and a damaged or another entry is never taken."""

import concurrent.futures
import dataclasses
import fcntl
import importlib.metadata
import os
import threading
import time

import numpy as np
import pytest
from tokenizers.normalizers import Normalizer

from rm_jax.batch import cache, group
from rm_jax.batch.cache import key, tokenise_cached
from rm_jax.batch.group import Group
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example
from tests.conftest import decoder_tokenizer, encoder_tokenizer

CHAT = ({"role": "user", "content": "say é"},)
PAIR = Example(
  CHAT,
  tuple(({"role": "assistant", "content": c},) for c in ("ab", "cde")),
  (1.0, 0.0),
  origin="f:1",
)
EXAMPLES = [
  PAIR,
  Example("q ", ("same", "same"), (1.0, 0.0), origin="f:2"),
  Example("q ", ("x", "yy", "\ud800"), (1.0, 2.0, 0.0), kind="ranking", origin="f:3"),
  Example("q ", ("x", "yy", "z"), (1.0, 2.0, 0.0), kind="ranking", weight=0.5, origin="f:4"),
  Example("w " * 40, ("x", "y"), (1.0, 0.0), margin=2.0, source="s", origin="f:5"),
]
STEPS = Example("1+1", ("2. 3.",), (1.0, 0.0), kind="step", steps=(("2.", "3."),), origin="f:6")


def encoder(kind="decoder", **convention):
  if kind == "encoder":
    return TextEncoder(encoder_tokenizer(), Convention(encoder=True, pooling="first", eos="none"))
  return TextEncoder(decoder_tokenizer(), Convention(max_length=64, **convention))


def same(one, other):
  for field in dataclasses.fields(Group):
    a, b = getattr(one, field.name), getattr(other, field.name)
    np.testing.assert_equal(b, a, err_msg=field.name)
    for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
      assert getattr(x, "dtype", None) == getattr(y, "dtype", None), field.name


def never(*unused):
  raise AssertionError("tokenised again")


@pytest.mark.parametrize(
  ("kind", "convention"), [("decoder", {}), ("decoder", {"pooling": "mean"}), ("encoder", {})]
)
def test_from_the_disk_as_made(kind, convention, tmp_path, monkeypatch):
  text = encoder(kind, **convention)
  examples = EXAMPLES[1:] if kind == "encoder" else [*EXAMPLES, STEPS]
  want, got, again = Report(), Report(), Report()
  groups, kept = group.tokenise(examples, text, want)
  assert want.dropped == {"identical_after_tokenising": 1, "lone_surrogate": 1}
  for report in (got, again):
    found, mine = tokenise_cached(examples, text, report, folder=tmp_path)
    assert mine == kept
    assert len(found) == len(groups)
    for one, other in zip(groups, found, strict=True):
      same(one, other)
    assert report == want
    assert not found[0].ids[0].flags.writeable
    assert found[1:][0].shared == found[-1 - (len(found) - 2)].shared == groups[1].shared
    monkeypatch.setattr(cache, "unlabelled", never)


def test_labels_are_the_examples_own_and_texts_the_keys(tmp_path, monkeypatch):
  tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
  monkeypatch.setattr(cache, "unlabelled", never)
  turned = [dataclasses.replace(e, labels=e.labels[::-1], weight=3.0) for e in EXAMPLES]
  groups, _ = tokenise_cached(turned, encoder(), Report(), folder=tmp_path)
  np.testing.assert_array_equal(groups[0].labels, [0.0, 1.0])
  assert groups[0].weight == 3.0
  with pytest.raises(AssertionError, match="tokenised again"):
    tokenise_cached(EXAMPLES[1:], encoder(), Report(), folder=tmp_path)


def test_ratings_are_chosen_for_the_model_at_hand(tmp_path):
  def rated(**ratings):
    return Example("q", ("a",), (0.0,), kind="attributes", attributes=(ratings,), origin="f:1")

  examples = [rated(help=1.0), rated(verbose=2.0)]
  for names, dropped in ((("help",), 1), (("verbose", "help"), 0), (("help",), 1)):
    want, report = Report(), Report()
    expected, _ = group.tokenise(examples, encoder(), want, names)
    groups, _ = tokenise_cached(examples, encoder(), report, names, folder=tmp_path)
    assert report == want
    assert report.dropped.total() == dropped
    for one, other in zip(expected, groups, strict=True):
      same(one, other)
  with pytest.raises(DataError, match="the model has none"):
    tokenise_cached(examples, encoder(), Report(), folder=tmp_path)


def test_alike_responses_are_kept_where_they_are_not_compared(tmp_path):
  labels = {"pair": (1.0, 0.0), "outcome": (1.0, 1.0), "ranking": (2.0, 1.0), "score": (2.0, 3.0)}
  for kind, label in labels.items():
    example = Example("q ", ("same", "same"), label, kind, origin="f:1")
    want, report = Report(), Report()
    expected, _ = group.tokenise([example], encoder(), want)
    # All kinds share the folder: an entry of one kind must not decide for another.
    found, _ = tokenise_cached([example], encoder(), report, folder=tmp_path)
    compared = kind in ("pair", "ranking")
    assert report.dropped == want.dropped == ({"identical_after_tokenising": 1} if compared else {})
    assert len(found) == len(expected) == 1 - compared
    for one, other in zip(expected, found, strict=True):
      same(one, other)
  assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2


def test_what_tokens_depend_on_is_in_the_key():
  keys = {
    "plain": key(EXAMPLES, encoder()),
    "eos": key(EXAMPLES, encoder(eos="none")),
    "pooling": key(EXAMPLES, encoder(pooling="mean")),
    "fewer": key(EXAMPLES[1:], encoder()),
    "encoder": key(EXAMPLES, encoder("encoder")),
  }
  for name, options in (
    ("merges", {"merges": [("a", "b")]}),
    ("bos", {"bos": False}),
    ("chat", {"chat": "{{ messages }}"}),
    ("pad", {"pad": "</s>"}),
  ):
    text = TextEncoder(decoder_tokenizer(**options), Convention(max_length=64))
    keys[name] = key(EXAMPLES, text)
  assert len(set(keys.values())) == len(keys), keys
  # A pair is not a string that looks like one, and two texts are not one.
  a, b = Example("ab", ("c", "d"), (1.0, 0.0)), Example("a", ("bc", "d"), (1.0, 0.0))
  assert key([a], encoder()) != key([b], encoder())
  assert key(EXAMPLES, encoder()) == keys["plain"]
  slow = type("Slow", (), {"tokenizer": object()})()
  assert key(EXAMPLES, slow) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "missing", "no header", "empty"])
def test_a_damaged_entry_is_made_anew(damage, tmp_path, caplog):
  want, _ = group.tokenise(EXAMPLES, encoder(), Report())
  tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
  (entry,) = [p for p in tmp_path.iterdir() if p.is_dir()]
  good = {p.name: p.read_bytes() for p in entry.iterdir()}
  tokens = bytearray(good["tokens"])
  tokens[7] ^= 1
  if damage == "flip":
    (entry / "tokens").write_bytes(tokens)
  elif damage == "cut":
    (entry / "marks").write_bytes(good["marks"][:-4])
  elif damage == "header":
    (entry / "header.json").write_text('{"arrays": {}}')
  elif damage == "missing":
    (entry / "group").unlink()
  elif damage == "no header":
    (entry / "header.json").unlink()
  else:
    for path in entry.iterdir():
      path.unlink()
  report = Report()
  groups, _ = tokenise_cached(EXAMPLES, encoder(), report, folder=tmp_path)
  assert f"{entry}: damaged" in caplog.text
  for one, other in zip(want, groups, strict=True):
    same(one, other)
  assert report.dropped.total() == 2
  assert {p.name: p.read_bytes() for p in entry.iterdir()} == good
  assert not list(tmp_path.glob(".tmp-*"))


def test_who_dies_leaves_nothing_that_is_taken(tmp_path, monkeypatch):
  class Died(BaseException):
    pass

  def dies(*args):
    yield from list(group.unlabelled(*args))[:2]
    raise Died

  monkeypatch.setattr(cache, "unlabelled", dies)
  with pytest.raises(Died):
    tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
  assert not [p for p in tmp_path.iterdir() if p.is_dir()]
  monkeypatch.setattr(cache, "unlabelled", group.unlabelled)
  groups, _ = tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
  assert len(groups) == 3


def test_of_several_at_once_one_makes_it(tmp_path, monkeypatch):
  made = []

  def counts(*args):
    made.append(threading.get_ident())
    return group.unlabelled(*args)

  monkeypatch.setattr(cache, "unlabelled", counts)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    calls = [
      pool.submit(tokenise_cached, EXAMPLES, encoder(), Report(), folder=tmp_path) for _ in range(4)
    ]
    found = [call.result()[0] for call in calls]
  assert len(made) == 1
  for groups in found:
    for one, other in zip(found[0], groups, strict=True):
      same(one, other)


def test_without_a_lock_the_second_to_finish_takes_the_firsts(tmp_path, monkeypatch):
  monkeypatch.setattr(cache.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))

  first = []

  def slow(*args):
    with monkeypatch.context() as patch:
      patch.setattr(cache, "unlabelled", group.unlabelled)
      tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
    first.extend(p.stat().st_ino for p in tmp_path.iterdir() if len(list(p.glob("*"))) > 1)
    yield from group.unlabelled(*args)

  monkeypatch.setattr(cache, "unlabelled", slow)
  groups, _ = tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
  assert len(groups) == 3
  (entry,) = [p for p in tmp_path.iterdir() if p.is_dir()]
  assert first == [entry.stat().st_ino]


def test_strict_stops_at_the_first_fault_with_and_without_an_entry(tmp_path, monkeypatch):
  messages, seen = [], []

  def counts(*args):
    for one in group.unlabelled(*args):
      seen.append(one)
      yield one

  monkeypatch.setattr(cache, "unlabelled", counts)
  for made in (False, True):
    if made:
      tokenise_cached(EXAMPLES, encoder(), Report(), folder=tmp_path)
    with pytest.raises(DataError, match=r"f:2: identical_after_tokenising") as error:
      tokenise_cached(EXAMPLES, encoder(), Report(strict=True), folder=tmp_path)
    messages.append(str(error.value))
    assert len(seen) == (2 + len(EXAMPLES) if made else 2)
  assert messages[0] == messages[1]


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, caplog):
  (tmp_path / "file").write_text("")
  report = Report()
  groups, _ = tokenise_cached(EXAMPLES, encoder(), report, folder=tmp_path / "file")
  assert len(groups) == 3
  assert report.dropped.total() == 2
  assert "going on without" in caplog.text


def test_where_it_is(monkeypatch, tmp_path):
  assert cache.cache_folder("none") is None
  assert cache.cache_folder(str(tmp_path)) == tmp_path
  monkeypatch.delenv("RM_JAX_TOKENS")
  monkeypatch.setenv("RM_JAX_CACHE", str(tmp_path))
  assert cache.cache_folder("") == tmp_path / "tokens"


def test_nothing_is_an_entry_too(tmp_path):
  for _ in range(2):
    groups, kept = tokenise_cached([], encoder(), Report(), folder=tmp_path)
    assert (len(groups), kept) == (0, [])


def test_steps_are_in_the_key():
  cut = [dataclasses.replace(STEPS, steps=(steps,)) for steps in (("2.", "3."), ("2. 3.",))]
  assert cut[0].responses == cut[1].responses
  assert key(cut[:1], encoder()) != key(cut[1:], encoder())


def test_special_tokens_are_in_the_key():
  # Which token ends a sequence is the wrapper's to say: the file of the tokenizer is the same.
  plain, other = decoder_tokenizer(), decoder_tokenizer()
  other.eos_token = "<s>"
  assert plain.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
  keys = [key(EXAMPLES, TextEncoder(t, Convention(max_length=64))) for t in (plain, other)]
  assert keys[0] != keys[1]


class Same:
  """A component in Python, which changes nothing."""

  def normalize(self, text):
    text.map(lambda c: c)


def test_a_tokenizer_with_a_component_in_python_is_not_cached(tmp_path):
  text = encoder()
  text.tokenizer.backend_tokenizer.normalizer = Normalizer.custom(Same())
  with pytest.raises(Exception, match="cannot be serialized"):
    text.tokenizer.backend_tokenizer.to_str()
  assert key(EXAMPLES, text) is None
  groups, _ = tokenise_cached(EXAMPLES[4:], text, Report(), folder=tmp_path)
  assert len(groups) == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["tokenizers", "transformers", "jinja2"])
def test_the_versions_of_the_libraries_are_in_the_key(library, monkeypatch):
  before, version = key(EXAMPLES, encoder()), importlib.metadata.version
  other = {library: "0"}
  monkeypatch.setattr(cache.importlib.metadata, "version", lambda n: other.get(n, version(n)))
  assert key(EXAMPLES, encoder()) != before


def _aged(path, days):
  """Makes a file or a folder look untouched for so long."""
  then = time.time() - days * 86_400
  for one in (path, *path.rglob("*")) if path.is_dir() else (path,):
    os.utime(one, (then, then))


def _made(tmp_path, n):
  """The entry of some texts."""
  examples = [Example(f"q{n} ", ("x", "yy"), (1.0, 0.0), origin="f:1")]
  groups, _ = tokenise_cached(examples, encoder(), Report(), folder=tmp_path)
  return tmp_path / key(examples, encoder()), groups


def test_what_nobody_needs_is_cleared_when_an_entry_is_added(tmp_path):
  (old, groups), (used, _), (new, _) = (_made(tmp_path, n) for n in range(3))
  names = (".tmp-dead", ".tmp-alive", "notes", "f" * 31)
  for name in names:
    (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / name / "new" / "tokens").write_bytes(b"x" * 9)
    _aged(tmp_path / name, 100)
  os.utime(tmp_path / ".tmp-alive" / "new" / "tokens")  # a day has not gone by since it wrote
  orphan = tmp_path / f"{'0' * 32}.lock"
  orphan.write_text("")
  for path in (old, used, orphan):
    _aged(path, 61)
  assert _made(tmp_path, 1)[0] == used  # read, which counts as use
  before = groups[0].ids[0].tolist()
  added, _ = _made(tmp_path, 3)
  left = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
  assert left == {used.name, new.name, added.name, ".tmp-alive", "notes", "f" * 31}
  assert not orphan.exists()
  # Who had it open reads on.
  assert groups[0].ids[0].tolist() == before


def test_an_entry_that_another_is_about_to_open_stays(tmp_path):
  old, _ = _made(tmp_path, 0)
  _aged(old, 61)
  with open(tmp_path / f"{old.name}.lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    cache.clear(tmp_path)
    assert old.exists()
  cache.clear(tmp_path)
  assert not old.exists()


def test_over_the_size_the_longest_unread_go_first(tmp_path, monkeypatch):
  entries = [_made(tmp_path, n)[0] for n in range(4)]
  size = sum(file.stat().st_size for file in entries[0].iterdir())
  for path, days in zip(entries, (30, 20, 10, 1), strict=True):
    _aged(path, days)
  monkeypatch.setattr(cache, "_LARGEST", int(2.5 * size))
  cache.clear(tmp_path)
  assert [path.exists() for path in entries] == [False, False, True, True]
  monkeypatch.setattr(cache, "_LARGEST", 0)  # what the last week read stays, whatever it takes
  cache.clear(tmp_path)
  assert [path.exists() for path in entries] == [False, False, False, True]
