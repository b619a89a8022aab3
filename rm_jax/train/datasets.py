"""The data sets of a config: sources are read, split, checked and tokenised."""

import collections
import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.batch.cache import cache_folder
from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import check_vocabulary
from rm_jax.data import formats
from rm_jax.data.dialogue import key_of
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.pretrained.config import is_classifier
from rm_jax.reward.setup import TextModel
from rm_jax.storage.remote import local
from rm_jax.train.parse import parse_call, parse_loss, uses_ties
from rm_jax.types import KINDS, Example
from rm_jax.world import World

log = logging.getLogger(__name__)


_WORLD = re.compile(r"world:([1-9]\d*)(?::([1-9]\d*))?(\(.*\))?", re.DOTALL)


def world_of(name: str, config: Any, split: str) -> tuple[World, int, int | None] | None:
  """Parses 'world:N', 'world:N:K' and 'world:N(option=value)'.

  Args:
    name: of the data.
    config: the run's; `data.world` has the options that the name does not set.
    split: 'train' or 'heldout', for errors.

  Returns:
    (the generated world, N, K of rankings or None for pairs); None if the name is that of a file or
    data set.

  Raises:
    ValueError: the name begins with 'world:' and is not of that form, or an option is unknown.
  """
  if name.partition(":")[0] != "world":
    return None
  expected = (
    f"data.{split} is {name!r}; expected 'world:N', N the number of pairs, or 'world:N:K', N "
    "rankings of K responses, and behind it options as in 'world:N(flips=0.1)'"
  )
  if not (found := _WORLD.fullmatch(name)):
    raise InputError(expected)
  _, given = parse_call("world" + (found[3] or "()"), expected)
  try:
    world = World(**{**config.data.world, **given})
  except (TypeError, ValueError) as error:
    raise InputError(f"data.{split} is {name!r}: {error}") from None
  return world, int(found[1]), int(found[2]) if found[2] else None


def true_world(names: Sequence[str], config: Any) -> World | str | None:
  """The generated world whose true reward judged the data.

  Args:
    names: of the data, as `read` takes them.
    config: the run's; `data.world` has the options that a name does not set.

  Returns:
    the world; None if no data are generated; a message if they are of several worlds.
  """
  asked = [world_of(name, config, "heldout") for name in names]
  worlds = list(dict.fromkeys(one[0] for one in asked if one))
  if len(worlds) > 1:
    return f"the data are of {len(worlds)} generated worlds, each with a true reward of its own"
  return worlds[0] if worlds else None


def read(name: str, config: Any, report: Report, split: str, **options) -> list[Example]:
  """Reads the examples of a path, a hub id, or the generated world.

  'world:N' is N pairs, 'world:N:K' N rankings of K. Options of the world may follow, which override
  those of data.world: 'world:400(flips=0.0)'.

  Args:
    name: of the data.
    config: the run's.
    report: counts what is dropped.
    split: 'train' or 'heldout'; `data.limit` is for 'train' only.
    options: of `formats.load`.
  """
  if asked := world_of(name, config, split):
    world, count, responses = asked
    if responses:
      examples = world.rankings(split, count, responses, config.seed)
    else:
      examples = world.pairs(split, count, config.seed)
    report.rows += len(examples)
    return examples
  limit = config.data.limit if split == "train" else 0
  options = {
    "format": config.data.format,
    "limit": limit or None,
    # Audits read configs of older runs, which do not have the field.
    "columns": config.data.get("columns"),
  } | options
  return formats.load(local(name), report=report, **options)


def heldout_names(config: Any) -> list[str]:
  """Names of the held-out data: data.heldout, or the training data if that is a fraction."""
  if _share(config) is None:
    return [str(config.data.heldout)]
  if config.data.train:
    return [config.data.train]
  return [str(source.get("path", "")) for source in config.data.sources.values()]


def _share(config: Any) -> float | None:
  """The fraction of the training data that is held out; None if data.heldout names other data."""
  try:
    return float(str(config.data.heldout))
  except ValueError:
    return None


_SOURCE_KEYS = ("path", "format", "columns", "rate", "weight")


def _read_sources(config: Any, report: Report) -> tuple[list[Example], dict[str, float]]:
  """(examples of all `data.sources`, source -> rate); rates are 0 if none is given."""
  examples, rates = [], {}
  for name, source in config.data.sources.items():
    field = f"data.sources.{name}"
    unknown = [key for key in source if key not in _SOURCE_KEYS]
    if unknown or not source.get("path"):
      raise InputError(
        f"{field} has {sorted(source)}; expected 'path', and of {', '.join(_SOURCE_KEYS[1:])} "
        "those that are needed"
      )
    try:
      rate, weight = float(source.get("rate", 0.0)), float(source.get("weight", 1.0))
    except (TypeError, ValueError) as error:
      raise InputError(f"{field}: {error}; expected rate and weight to be numbers") from None
    if not (0 <= rate < np.inf and 0 <= weight < np.inf):
      raise InputError(
        f"{field}: rate {rate}, weight {weight}; expected finite numbers, neither under 0"
      )
    rates[name] = rate
    options = {name: source[name] for name in ("format", "columns") if source.get(name)}
    examples += [
      dataclasses.replace(example, source=name, weight=example.weight * weight)
      for example in read(source["path"], config, report, "train", **options)
    ]
  given = [name for name, rate in rates.items() if rate]
  if given and len(given) < len(rates):
    raise InputError(
      f"data.sources: {', '.join(given)} have a rate and the others have not; give all one, or none"
    )
  return examples, rates


def _distinct(examples: list[Example], report: Report) -> list[Example]:
  """Drops examples that repeat the texts of an earlier one, whatever their labels."""
  seen: dict[tuple, Example] = {}
  for example in examples:
    texts = tuple(map(key_of, (example.prompt, *example.responses)))
    first = seen.setdefault((example.kind, texts, example.steps), example)
    if first is not example:
      same = "the same" if first.labels == example.labels else "other"
      detail = f"the texts of {first.origin}, with {same} labels"
      report.drop("duplicate", example.origin, detail, fault=False)
  return list(seen.values())


def _decided(examples: list[Example], losses: Any, report: Report) -> list[Example]:
  """Drops examples that are all ties, if their loss does not learn from ties."""
  kept = []
  for example in examples:
    if example.kind in ("pair", "ranking") and not uses_ties(losses[example.kind]):
      pairs = example.pairs or ([0.0],) if example.ties or example.pairs else None
      # In float32, as the loss reads them: labels that differ only in float64 are tied.
      labels = np.asarray(example.labels, np.float32)
      apart = any(map(any, pairs)) if pairs else bool((labels != labels[0]).any())
      if not apart:
        detail = f"all are tied, and loss.{example.kind} is {losses[example.kind]!r}"
        report.drop("all_tied", example.origin, detail, fault=False)
        continue
    kept.append(example)
  return kept


def _check_fit(examples: list[Example], losses: Any) -> None:
  """Raises DataError if a loss cannot use an example's feedback, before anything is tokenised."""
  for kind in sorted({e.kind for e in examples}, key=KINDS.index):
    loss, options = parse_loss(losses[kind], f"loss.{kind}")
    mine = [e for e in examples if e.kind == kind]
    bad = [(e, why) for e in mine if (why := loss.problem(e.labels, e.margin, options))]
    if bad:
      example, why = bad[0]
      raise DataError(
        f"{example.origin or example.source}: loss.{kind} is {losses[kind]!r} and {why}; so it is "
        f"with {len(bad)} of {len(mine)} examples: mend them, or choose another loss"
      )
    if "pair_margin" in loss.needs and not any(e.margin for e in mine):
      raise DataError(f"loss.{kind} is {losses[kind]!r} and all margins are 0: nothing is learned")


def _check_weights(examples: list[Example]) -> None:
  """Raises DataError if the sum of the weights, which steps divide by, is 0 or overflows float32.

  Warns if one example outweighs all others together.
  """
  total = sum(e.weight for e in examples)
  heaviest = max(examples, key=lambda e: e.weight)
  if len(examples) > 2 and heaviest.weight > total / 2:
    log.warning(
      "%s has weight %g of %g in all: the other %d training examples hardly count",
      heaviest.origin,
      heaviest.weight,
      total,
      len(examples) - 1,
    )
  if not 0 < total < float(np.finfo(np.float32).max):
    raise DataError(
      f"the weights of the training data add up to {total}; expected more than 0, and what float32 "
      f"holds (3.4e38): the largest is {heaviest.weight}, of {heaviest.origin}"
    )


def _check_attributes(config: Any, model: TextModel, train: TokenDataset) -> None:
  """Raises ValueError if a model's attributes, or their mix, cannot be learned from the data."""
  # A checkpoint's own head already rates the attributes; then pairs alone may train its mix.
  known = model.source is not None and is_classifier(model.source.config)
  ratings = {} if known else train.ratings(model.network.head.attributes)
  none = [name for name, count in ratings.items() if not count]
  if none:
    rated = sorted({n for e in train.examples for one in e.attributes or () for n in one})
    raise InputError(
      f"model.attributes has {', '.join(none)}, which no row of the training data rates; "
      + (f"rated are {', '.join(rated)}" if rated else "they have no feedback on attributes")
    )
  if config.optimizer.mix_rate and all(e.kind == "attributes" for e in train.examples):
    raise InputError(
      f"optimizer.mix_rate is {config.optimizer.mix_rate} and the data are feedback on attributes "
      "alone, which says nothing of what they are worth; add pairs in data.sources, or set it to 0"
    )


def read_both(config: Any, report: Report) -> tuple[list[Example], list[Example], dict[str, float]]:
  """Reads the training and the held-out data of a config, as text.

  `data.heldout` is a path, 'world:N', or a fraction of the training data, split by conversation. If
  it is not a fraction, training examples whose conversation is held out are dropped and counted; so
  are repeated examples, with `data.deduplicate`.

  Returns:
    (training examples, held-out examples, source -> rate).

  Raises:
    ValueError, DataError: the config names no data, or data that cannot be used.
  """
  if bool(config.data.train) == bool(len(config.data.sources)):
    raise InputError(
      "set --config.data.train to a file, folder or hub id, or data.sources to several; found "
      f"{config.data.train!r} and {list(config.data.sources)}"
    )
  rates: dict[str, float] = {}
  if config.data.train:
    train = read(config.data.train, config, report, "train")
  else:
    train, rates = _read_sources(config, report)
  share = _share(config)
  if share is None:
    held = read(str(config.data.heldout), config, report, "heldout")
    known = {e.conversation for e in held}
    for example in train:
      if example.conversation in known:
        detail = "its conversation is in data.heldout too"
        report.drop("conversation_is_held_out", example.origin, detail, fault=False)
    train = [e for e in train if e.conversation not in known]
  else:
    # Audits read configs of older runs, which do not have the field.
    seed = config.data.get("split_seed", -1)
    train, held = formats.split(train, share, config.seed if seed < 0 else seed)
    conversations = len({e.conversation for e in held})
    if share and conversations < 2:
      total = conversations + len({e.conversation for e in train})
      raise DataError(
        f"data.heldout is {share} of {total} conversations, which holds out {conversations}; "
        "expected at least 2: give more data, a larger fraction, a file, or 0 to hold out none"
      )
  if config.data.deduplicate:
    train, held = _distinct(train, report), _distinct(held, report)
  return train, held, rates


def load_data(config: Any, model: TextModel) -> tuple[TokenDataset, TokenDataset, Report]:
  """Reads, checks and tokenises the data of a config.

  Returns:
    (training data, held-out data, report of what was kept and dropped).

  Raises:
    ValueError, DataError: the data, or their combination with the model or the losses, cannot be
      trained on.
  """
  report = Report(strict=config.data.strict)
  train, held, rates = read_both(config, report)
  train = _decided(train, config.loss, report)
  _check_fit(train, config.loss)
  kept = cache_folder(config.data.cache)
  datasets = [TokenDataset(*model.tokenise(some, report, kept), rates) for some in (train, held)]
  if not datasets[0].groups:
    raise DataError(f"{config.data.train or list(rates)}: no group is left to train on. {report}")
  if held and not datasets[1].groups:
    raise DataError(f"data.heldout is {config.data.heldout}: no group of it is left. {report}")
  _check_weights(datasets[0].examples)
  _check_attributes(config, model, datasets[0])
  for one in datasets:
    check_vocabulary(one.groups, model.network.backbone.vocab)
  return *datasets, report


def data_summary(
  report: Report, train: TokenDataset, heldout: TokenDataset, attributes: Sequence[str]
) -> dict[str, Any]:
  """The section of summary.json on the data."""
  return {
    "kept": report.kept,
    "kinds": dict(collections.Counter(e.kind for e in train.examples)),
    "ratings": train.ratings(attributes),
    "dropped": dict(sorted(report.dropped.items())),
    "examples_of_dropped": report.examples,
    "train": len(train.groups),
    "heldout": len(heldout.groups),
    "prompts_cut": sum(g.cut > 0 for g in [*train.groups, *heldout.groups]),
  }


def load_shifted(
  config: Any, model: TextModel, heldout: TokenDataset, *, pooled: bool = False
) -> TokenDataset | None:
  """`data.shifted`, data on which an ensemble should disagree more; None if not configured.

  Args:
    config: the run's.
    model: the run's.
    heldout: the data it is compared with.
    pooled: the ensemble is made of several runs, so that the model need not be one.

  Raises:
    ValueError: the model is not an ensemble, or no data are held out to compare with.
    DataError: no group of the data is left.
  """
  if not (name := config.data.shifted):
    return None
  if not (pooled or model.network.head.ensemble):
    raise InputError(
      f"data.shifted is {name!r} and model.members {config.model.members}; expected an ensemble, "
      "of model.members=2 or more"
    )
  if not heldout.groups:
    raise InputError("data.shifted is compared with data.heldout, which holds nothing out")
  report = Report(strict=config.data.strict)
  examples = read(name, config, report, "heldout")
  found = TokenDataset(*model.tokenise(examples, report, cache_folder(config.data.cache)))
  if not found.groups:
    raise DataError(f"data.shifted is {name!r}: no group is left. {report}")
  return found
