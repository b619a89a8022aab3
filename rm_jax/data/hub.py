"""Which files of a folder hold data, and which files of a hub data set belong to a split."""

import dataclasses
import pathlib
import re

from rm_jax.data.report import DataError

_ID = re.compile(
  r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?"
)
_METADATA = {"dataset_infos.json", "dataset_info.json", "state.json"}  # JSON files without rows
_FETCHED = [
  "*.parquet",
  *(f"*.{kind}{z}" for kind in ("jsonl", "json", "csv", "tsv") for z in ("", ".gz")),
]
_SHARD = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<total>\d{5})")
# Words in a file's name that say its split, the same ones that the `datasets` library accepts.
_WORDS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class HubId:
  """The parts of a hub id 'org/name@config:split'; None for a part that the id does not name."""

  repo: str
  config: str | None = None
  split: str | None = None


def parse(text: str) -> HubId | None:
  """Parses a hub id; None if `text` does not have that form."""
  match = _ID.fullmatch(text)
  return HubId(**match.groupdict()) if match else None


def kind(path: pathlib.PurePath) -> str | None:
  """A file's kind by its name: 'json' (JSON lines), 'csv' (also TSV), 'parquet'; else None."""
  name = path.name.lower()
  if name.endswith(".parquet"):
    return "parquet"
  name = name.removesuffix(".gz")
  if name.endswith((".csv", ".tsv")):
    return "csv"
  return "json" if name.endswith((".jsonl", ".json")) else None


def data_files(root: pathlib.Path) -> tuple[list[pathlib.PurePath], list[pathlib.PurePath]]:
  """Lists the files under `root`, without hidden ones, as (data files, other files).

  Both lists are sorted, and their paths are relative to `root`. CSV and TSV are data files only
  where there are no JSON lines or parquet: beside those they are notes and tables of results.
  """
  seen = _seen(root)
  data = _without_notes([p for p in seen if kind(p) and p.name not in _METADATA])
  return data, sorted(set(seen) - set(data))


def _seen(root: pathlib.Path) -> list[pathlib.PurePath]:
  """All files under `root` but hidden ones, sorted, relative to it."""
  every = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
  return [p for p in every if not any(part.startswith(".") for part in p.parts)]


def _without_notes(data: list[pathlib.PurePath]) -> list[pathlib.PurePath]:
  """Data files without CSV and TSV, where there are files of other kinds."""
  return [p for p in data if kind(p) != "csv"] or data


def check_once(where: str, found: list[pathlib.PurePath]) -> None:
  """Raises DataError if the same file is in `found` both plain and with .gz."""
  names = {path.as_posix() for path in found}
  twice = sorted(name for name in names if f"{name}.gz" in names)
  if twice:
    raise DataError(
      f"{where}: {twice[0]} is there both plain and with .gz, so its rows would be read twice. "
      "Remove one of them, or name the file to read."
    )


def fetch(dataset: HubId) -> tuple[pathlib.Path, list[pathlib.PurePath]]:
  """Downloads a data set, or finds it in the hub's cache, and selects the files of its split.

  Returns:
    (folder of the snapshot, files relative to it in reading order).

  Raises:
    DataError: if the hub has no such data set or cannot be reached, as `select`, if the rows of the
      split are there in two kinds of files, or if shards of it are missing.
  """
  import huggingface_hub  # Imported here: it is slow, and most runs read local files only.

  try:
    got = huggingface_hub.snapshot_download(
      dataset.repo, repo_type="dataset", allow_patterns=[*_FETCHED, "README.md"]
    )
  except (OSError, ValueError) as error:  # The hub's own errors derive from these two.
    raise DataError(
      f"{dataset.repo}: no such file or folder here, and as a data set of the hub it could not be "
      f"fetched: {type(error).__name__}: {error}"
    ) from error
  root = pathlib.Path(got)
  card = root / "README.md"
  metadata = huggingface_hub.metadata_load(card) if card.is_file() else None
  found = [p for p in _seen(root) if kind(p) and p.name not in _METADATA]
  selected = select(dataset, found, (metadata or {}).get("configs"))
  if len({kind(path) for path in selected}) > 1:
    raise DataError(
      f"{dataset.repo}: the split is there both as parquet and as JSON lines, so its rows would be "
      f"read twice: {_listed(selected)}. Name a folder of the snapshot instead: {root}"
    )
  check_once(dataset.repo, selected)
  _check_shards(dataset.repo, selected)
  return root, selected


def select(
  dataset: HubId, found: list[pathlib.PurePath], configs: list[dict] | None
) -> list[pathlib.PurePath]:
  """Selects the files of a data set's config and split.

  If the data set's card lists `configs` with their files, the card decides. Otherwise the names of
  folders and files do: a folder is a config, and a file belongs to the split that its own or a
  folder's name contains ('test.jsonl.gz'); if there are shards ('train-00000-of-00002.parquet'),
  only these count, for the split in front of their number. An id that names no split selects
  'train', or all files if no name contains a split's word and there are no shards, or only shards
  of one name ('data-00000-of-00002.parquet'). CSV and TSV are left out where there are other files
  to choose from.

  Args:
    dataset: the parsed id.
    found: all data files, relative to the snapshot.
    configs: the card's list of {config_name, data_files, ...}, if it has one.

  Raises:
    DataError: if there is no such config or split, or the id has to name one of several configs;
      the message lists what there is.
  """
  if configs and any("data_files" in config for config in configs):
    return _without_notes(_by_card(dataset, found, configs))
  if dataset.config is not None:
    inside = [p for p in found if dataset.config in p.parts[:-1]]
    if not inside:
      folders = sorted({part for p in found for part in p.parts[:-1]})
      raise DataError(f"{dataset.repo}: no config {dataset.config!r}; folders: {folders}")
    found = inside
  found = _without_notes(found)
  wanted = dataset.split or "train"
  names = {_split_of(p) for p in found}
  told = dataset.split or any(_says(p, word) for p in found for word in _WORDS)
  if len(names) == 1 and not told:
    selected = found
  elif any(names):  # Shard names are exact: 'train' is not 'train_prefs'.
    selected = [p for p in found if _split_of(p) == wanted]
  else:
    selected = [p for p in found if _says(p, wanted)]
  if not selected:
    raise DataError(f"{dataset.repo}: no file of a split {wanted!r} among {_listed(found)}")
  return selected


def _by_card(
  dataset: HubId, found: list[pathlib.PurePath], configs: list[dict]
) -> list[pathlib.PurePath]:
  """The files that a data set's card lists for a config and split; see `select`.

  An id without a config means the only config, the one marked `default`, or the one called
  'default'.
  """
  names = {config.get("config_name", "default"): config for config in configs}
  if dataset.config is not None:
    config = names.get(dataset.config)
  elif len(configs) == 1:
    config = configs[0]
  else:
    default = [config for config in configs if config.get("default")]
    config = default[0] if default else names.get("default")
  if config is None:
    raise DataError(
      f"{dataset.repo}: has configs {sorted(names)}, and {dataset.config or 'none'} was named. "
      f"Write '{dataset.repo}@config:split'."
    )
  splits = _patterns(config.get("data_files", []))
  wanted = dataset.split or "train"
  if wanted not in splits:
    raise DataError(f"{dataset.repo}: no split {wanted!r}; its card lists {sorted(splits)}")
  folder = config.get("data_dir")
  patterns = [_glob(f"{folder}/{q}" if folder else q) for q in splits[wanted]]
  selected = [p for p in found if any(q.fullmatch(p.as_posix()) for q in patterns)]
  if not selected:
    raise DataError(f"{dataset.repo}: no file here matches its card's {splits[wanted]}")
  return selected


def _patterns(data_files: str | list) -> dict[str, list[str]]:
  """Reads a card's `data_files` as {split: patterns}; patterns without a split are 'train'."""
  if isinstance(data_files, str):
    return {"train": [data_files]}
  splits: dict[str, list[str]] = {}
  for entry in data_files:
    split, path = ("train", entry) if isinstance(entry, str) else (entry["split"], entry["path"])
    splits.setdefault(split, []).extend([path] if isinstance(path, str) else path)
  return splits


def _glob(pattern: str) -> re.Pattern:
  """Compiles a card's glob pattern: * and ? match inside one folder, ** across folders."""
  text = re.escape(pattern.removeprefix("./"))
  text = text.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
  return re.compile(text.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))


def _split_of(path: pathlib.PurePath) -> str | None:
  """The split in the name of a shard, 'split-00000-of-00002.parquet'; None for other names."""
  match = _SHARD.fullmatch(path.name.split(".")[0])
  return match["stem"] if match else None


def _says(path: pathlib.PurePath, split: str) -> bool:
  """Whether a file's path contains a word for the split between delimiters, as in 'my_dev.json'."""
  words = "|".join(map(re.escape, _WORDS.get(split, (split,))))
  return bool(re.search(rf"(?:^|[-._ 0-9/])(?:{words})(?:[-._ 0-9/]|$)", path.as_posix()))


def _check_shards(repo: str, selected: list[pathlib.PurePath]) -> None:
  """Raises DataError if fewer shards are present than their file names count."""
  shards: dict[tuple[str, int], set[int]] = {}
  for path in selected:
    match = _SHARD.fullmatch(path.name.split(".")[0])
    if match:
      key = (str(path.with_name(match["stem"])), int(match["total"]))
      shards.setdefault(key, set()).add(int(match["index"]))
  for (stem, total), present in shards.items():
    missing = sorted(set(range(total)) - present)
    if missing:
      raise DataError(
        f"{repo}: {stem} has {total} shards, and {missing} are missing from the local snapshot. "
        "Fetch it again with the network on."
      )


def _listed(paths: list[pathlib.PurePath]) -> str:
  names = [path.as_posix() for path in paths]
  return ", ".join(names[:8]) + (f", … ({len(names)} files)" if len(names) > 8 else "")
