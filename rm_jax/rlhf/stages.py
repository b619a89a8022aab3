"""Stages of a chain: each in a folder that says what it was begun with and, once done, its results.

    stage.json   what the stage depends on: its part of the config, and fingerprints of its inputs
    done.json    written last: the stage's results; while it is not there, the stage is begun again,
                 or goes on from its checkpoints

A stage that is done is not run again. One that was begun with anything else, and is done or has
checkpoints, is refused. Of one that has saved nothing yet, as after an error, nothing is kept: it
begins anew, so that what was at fault can be changed.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from rm_jax.errors import InputError
from rm_jax.pretrained.source import read_json
from rm_jax.storage.files import expanded, write_json
from rm_jax.storage.remote import local
from rm_jax.workdir.folder import flat

BEGUN, DONE = "stage.json", "done.json"
SUMMARY = "summary.json"  # results of a whole chain, in place of done.json
# Fields that may differ when a stage is gone on with.
_MAY_CHANGE = ("config.mesh.", "config.rl.keep")
# Fields that are missing in folders that were begun before these fields were there -> their values
# that mean what was done then; None = a chain that has begun does not depend on the field.
_LATER: dict[str, Any] = {
  "config.reward.steps": False,
  "config.reward.separator": None,
  "config.stop.surprise": None,
  "inputs.reward_says": None,
  "inputs.gold_says": None,
  "inputs.judge_says": None,
  "inputs.pretrained": None,
  "inputs.texts_folder": None,
  "inputs.reward.files": None,
  "inputs.gold.files": None,
  "inputs.judge.files": None,
}
# Where a stage, or the training run in it, keeps what it goes on from.
_CHECKPOINTS = ("checkpoints", "run/checkpoints")
# Inputs that are what a server says of a few fixed responses, which may differ a little each time.
_SAYS = ("reward_says", "gold_says", "judge_says")
_CLOSE = 0.02  # Relative and absolute difference of numbers that a server may say a second time.


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage and all that its results depend on.

  Attributes:
    folder: of its files.
    begun: {'config': the part of the chain's config, 'inputs': name -> fingerprint}, JSON's types.
  """

  folder: Path
  begun: dict[str, Any]

  def done(self) -> dict[str, Any] | None:
    """The stage's results; None if it is not done.

    Raises:
      InputError: the folder holds a stage that was begun with something else; or a file of it is
        damaged.
    """
    self.check()
    path = self.folder / DONE
    return read_json(path) if path.exists() else None

  def check(self, *, inputs: bool = True) -> None:
    """Raises InputError if the folder holds a stage that was begun with something else.

    Args:
      inputs: whether the inputs are compared, too, and not the config alone.
    """
    path = self.folder / BEGUN
    if not path.exists() or not has_saved(self.folder):
      return
    there, now = flat(read_json(path)), flat(self.begun)
    for field in _LATER.keys() & now.keys() - there.keys():
      before = _LATER[field]
      there[field] = now[field] if before is None else before
    if there.get("inputs.texts") == "":  # earlier versions had no digest of files named with '~'
      there["inputs.texts"] = now.get("inputs.texts")
    different = [
      f"{key.removeprefix('config.')}: {there.get(key)!r} there, {now.get(key)!r} now"
      for key in sorted(there.keys() | now.keys())
      if not _same(key, there.get(key), now.get(key))
      and not key.startswith(_MAY_CHANGE)
      and (inputs or not key.startswith("inputs."))
    ]
    if different:
      raise InputError(
        f"{self.folder} was begun with other settings or inputs:\n  "
        + "\n  ".join(different)
        + "\nexpected the same, since its results depend on them; give these again, or another "
        "--workdir"
      )

  def begin(self) -> None:
    """Makes the folder, and writes what the stage depends on, where `check` has allowed it.

    Of a stage that goes on, what a server said at first stays: later answers are compared with it,
    so that a server that changes little by little is noticed, too.
    """
    self.folder.mkdir(parents=True, exist_ok=True)
    path, begun = self.folder / BEGUN, self.begun
    if path.exists() and not has_saved(self.folder):
      # Of a training run that saved nothing its config is there, and would refuse another one.
      shutil.rmtree(self.folder / "run", ignore_errors=True)
    elif path.exists():
      before = read_json(path)["inputs"]
      kept = {name: before[name] for name in _SAYS if name in before and name in begun["inputs"]}
      begun = begun | {"inputs": begun["inputs"] | kept}
    write_json(path, begun)

  def finish(self, results: dict[str, Any]) -> dict[str, Any]:
    """Marks the stage as done; returns its results."""
    write_json(self.folder / DONE, results)
    return results


def _same(key: str, a: Any, b: Any) -> bool:
  """Whether two values of a field are the same; what a server says may differ a little."""
  if key.removeprefix("inputs.") not in _SAYS or None in (a, b):
    return a == b
  return len(a) == len(b) and all(
    math.isclose(x, y, rel_tol=_CLOSE, abs_tol=_CLOSE) for x, y in zip(a, b, strict=True)
  )


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the stages of a chain are.

  Attributes:
    workdir: of the chain.
    shared: folder of stages that several chains share, where their names end with a hash of what
      they depend on; None = each is in the workdir.
  """

  workdir: Path
  shared: Path | None = None

  def stage(self, name: str, config: dict[str, Any], inputs: dict[str, Any]) -> Stage:
    """A stage by its name, its part of the config and the fingerprints of its inputs."""
    begun = json.loads(json.dumps({"config": config, "inputs": inputs}))
    if self.shared is None:
      return Stage(self.workdir / name, begun)
    sure = {name: _without_files(x) for name, x in begun["inputs"].items() if name not in _SAYS}
    known = json.dumps(begun | {"inputs": sure}, sort_keys=True)
    digest = hashlib.sha256(known.encode()).hexdigest()[:10]
    return Stage(self.shared / f"{name}-{digest}", begun)


def has_saved(folder: Path) -> bool:
  """Whether a stage in a folder has results, or a state that would be gone on with."""
  return any((folder / name).exists() for name in (DONE, SUMMARY)) or any(
    any((folder / name).glob("*")) for name in _CHECKPOINTS
  )


def _without_files(value: Any) -> Any:
  """An input as names of shared folders have it: those of earlier versions are found again."""
  return {k: v for k, v in value.items() if k != "files"} if isinstance(value, dict) else value


def plain(config: Any, *names: str) -> dict[str, Any]:
  """Parts of a config as dicts and lists, {name: part}; a name may be a path, as 'reward.run'."""
  whole = json.loads(json.dumps(config.to_dict()))
  found = {}
  for name in names:
    part = whole
    for key in name.split("."):
      part = part[key]
    found[name] = part
  return found


def file_digest(path: Path) -> str:
  """16 hex digits of a hash of a file's bytes."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_digest(path: Path) -> str:
  """16 hex digits of a hash of the files in a folder and the folders in it: names and bytes."""
  names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
  return text_digest([[name, file_digest(path / name)] for name in names])


def digest_of(name: str) -> str:
  """The digest of a file or folder by its name, which may begin with '~' or be a URL; else ''.

  Raises:
    OSError, InputError: as `storage.remote.local`.
  """
  path = expanded(local(name))
  if path.is_dir():
    return folder_digest(path)
  return file_digest(path) if path.is_file() else ""


def text_digest(texts: Any) -> str:
  """16 hex digits of a hash of prompts, or of lists of them."""
  return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
