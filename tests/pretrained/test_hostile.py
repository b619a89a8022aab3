"""A few seconds of `tests.studies.hostile`, the study of damaged model folders."""

import random
import resource

import pytest

from tests.studies import hostile, hostile_cases


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  made = hostile.make_bases(tmp_path_factory.mktemp("bases"))
  for path in made:
    hostile.load(str(path))  # so that no import is counted
  return made


def check(path):
  """'refused' or 'right', as the study judges it, with a bound on memory."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  found = hostile.attempt(hostile.load, str(path))
  more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
  assert "untyped" not in found, found
  assert more < hostile.MEBIBYTES * 2**10
  if "typed" in found:
    return "refused"
  assert not (wrong := hostile.judge(path, found["ok"])), wrong
  return "right"


def test_what_is_whole_is_right(bases):
  assert [check(path) for path in bases] == ["right", "right"]


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_mutants_are_refused_or_right(bases, tmp_path, kind):
  base, file = bases
  rng, seen = random.Random(3), []
  for i in range(24):
    path = tmp_path / (f"{i}.gguf" if kind == "gguf" else f"{i}")
    if kind == "gguf":
      hostile.gguf_mutant(file, path, rng)
    else:
      hostile.safetensors_mutant(base, path, rng)
    seen.append(check(path))
  # Both happen, or the test would show nothing.
  assert set(seen) == {"refused", "right"}


def test_the_judge_sees_a_weight_that_is_another(bases):
  for path in bases:
    said = hostile.load(str(path))
    name = "model.layers.0.self_attn.q_proj.weight"
    said["weights"][name] = "0"
    assert "weights differ" in hostile.judge(path, said)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_folders_are_refused_or_right(bases, tmp_path, every):
  ran = tmp_path / "ran"
  cases = list(hostile_cases.folders(*bases, ran))
  assert len({name for name, _ in cases}) == len(cases) >= 170
  # Some of each kind; the study has those of many megabytes.
  small = [c for c in cases if " MB " not in c[0] and "200" not in c[0] and "w0" not in c[0]]
  for i, (name, make) in enumerate(small):
    if i % every:
      continue
    target = tmp_path / str(i)
    hostile.shutil.copytree(bases[0], target)
    path = make(target) or target
    assert check(path) in ("refused", "right"), name
    assert not ran.exists(), name
