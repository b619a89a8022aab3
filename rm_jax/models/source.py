"""A checkpoint to start from: a Hugging Face folder, a GGUF file or a folder that we saved.

What we save is a Hugging Face folder too (config.json, safetensors, tokenizer), with one file more:
`rm_jax.json`, the record of how text becomes tokens and where the reward is read.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.models import clients, files, gguf

RECORD = "rm_jax.json"


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that has been found but not read.

  Attributes:
    name: what it was asked for by.
    path: folder or GGUF file.
    config: dictionary of its config.json (made from the metadata of a GGUF file).
    record: dictionary of its rm_jax.json; empty where it is not one that we saved.
  """

  name: str
  path: Path
  config: dict[str, Any]
  record: dict[str, Any]

  def tensors(self) -> Any:
    """A lazy reader of its tensors: names(), shape(name), get(name)."""
    if self._gguf:
      return self._gguf
    reader = files.read_tensors(self.path)
    packed = self.record.get("head_tensors")
    return clients.Overlaid(reader, packed) if packed else reader

  def tokenizer(self) -> Any:
    """Its tokenizer. Raises ValueError where it has none."""
    return gguf.tokenizer(self.path) if self._gguf else load_tokenizer(self.path)

  @functools.cached_property
  def _gguf(self) -> Any:
    return gguf.read(self.path) if self.path.suffix == ".gguf" else None


def read_json(path: Path) -> dict[str, Any]:
  """A JSON file's object. Raises ValueError naming the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: not a readable JSON file: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: holds a {type(value).__name__}; expected an object")
  return value


def _find(name: str) -> Path:
  # A folder need not have weights: a tokenizer's has none, a run's are in its checkpoints.
  folder = Path(name).expanduser()
  return folder if folder.is_dir() else files.resolve(name)


def open_source(name: str) -> Source:
  """Finds a folder, GGUF file or hub id (see `files.resolve`) and reads its config.

  Raises:
    ValueError, OSError: nothing is there, or it has no config.json.
  """
  path = _find(name)
  if path.suffix == ".gguf":
    return Source(name, path, gguf.read(path).config, {})
  if not (path / "config.json").is_file():
    raise ValueError(f"{path}: has no config.json; expected a Hugging Face model folder")
  record = path / RECORD
  saved = read_json(record) if record.exists() else {}
  return Source(name, path, read_json(path / "config.json"), saved)


def load_tokenizer(name: str | Path) -> Any:
  """A tokenizer from a folder, GGUF file or hub id. Raises ValueError where there is none."""
  path = _find(str(name))
  if path.suffix == ".gguf":
    return gguf.tokenizer(path)
  from transformers import AutoTokenizer

  try:
    tokenizer = AutoTokenizer.from_pretrained(path)
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{path}: no tokenizer could be loaded ({error}); set --config.model.tokenizer to a folder, "
      "GGUF file or hub id that has one"
    ) from None
  record = path / RECORD
  return clients.as_trained(tokenizer, read_json(record)) if record.exists() else tokenizer


def save_folder(
  path: Path,
  *,
  config: dict[str, Any],
  tokenizer: Any,
  record: dict[str, Any],
  tensors: Iterable[tuple[str, np.ndarray]] | None = None,
) -> None:
  """Writes a Hugging Face folder with our record; without `tensors`, all but the weights."""
  path.mkdir(parents=True, exist_ok=True)
  tokenizer.save_pretrained(path)
  if tensors is not None:
    files.write_tensors(path, dict(tensors))
  (path / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
  (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
