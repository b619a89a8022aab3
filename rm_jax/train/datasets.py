"""The data sets of a config: sources are read, split, checked and tokenised."""

import collections
import dataclasses
import fnmatch
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rm_jax.batch.cache import cache_folder
from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import check_vocabulary
from rm_jax.batch.mismatch import Mismatched
from rm_jax.data import formats
from rm_jax.data.dialogue import key_of
from rm_jax.data.report import DataError, Report
from rm_jax.declared import parse_call
from rm_jax.errors import InputError
from rm_jax.losses import asks_for_baseline
from rm_jax.pretrained.config import is_classifier
from rm_jax.reward.setup import TextModel
from rm_jax.storage.files import expanded
from rm_jax.storage.remote import local
from rm_jax.train.parse import parse_loss, uses_ties
from rm_jax.types import KINDS, Example
from rm_jax.world import World

log = logging.getLogger(__name__)


_WORLD = re.compile(r"world:([1-9]\d*)(?::([1-9]\d*))?(\(.*\))?", re.DOTALL)


def world_of(name: str, config: Any, split: str) -> tuple[World, int, int | None] | None:
  """Parses 'world:N' and 'world:N:K', which options may follow, as in 'world:N(flips=0.1)'.

  Args:
    name: of the data.
    config: the run's; `data.world` has the options that the name does not set.
    split: 'train' or 'heldout', for errors.

  Returns:
    (the generated world, N, K of rankings or None for pairs); None if the name is neither 'world'
    nor begins with 'world:'.

  Raises:
    InputError: such a name is not of that form, or an option is unknown or out of its range.
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
    raise InputError(f"data.{split} is {name!r}: {error}") from error
  return world, int(found[1]), int(found[2]) if found[2] else None


def true_world(names: Sequence[str], config: Any) -> World | str | None:
  """The generated world whose true reward judged the data, or those of them that are generated.

  Args:
    names: of the data, as `read` takes them.
    config: the run's; `data.world` has the options that a name does not set.

  Returns:
    the world; None if no data are generated; a message if they are of several worlds.

  Raises:
    ValueError: as `world_of`.
  """
  asked = [world_of(name, config, "heldout") for name in names]
  worlds = list(dict.fromkeys(one[0] for one in asked if one))
  if len(worlds) > 1:
    return f"the data are of {len(worlds)} generated worlds, each with a true reward of its own"
  return worlds[0] if worlds else None


def read(name: str, config: Any, report: Report, split: str, **options) -> list[Example]:
  """Reads the examples of a path, a URL, a hub id, or the generated world.

  'world:N' is N pairs, 'world:N:K' N rankings of K. Options of the world may follow, which override
  those of data.world: 'world:400(flips=0.0)'.

  Args:
    name: of the data.
    config: the run's.
    report: counts what is read and dropped.
    split: 'train' or 'heldout'; `data.limit` is for 'train' only, and not for a generated world.
    options: of `formats.load`, in place of those of the config; not read for a generated world.

  Raises:
    ValueError, OSError: as `world_of`, `formats.load` and `storage.remote.local`.
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
  """Names of the held-out data: data.heldout, or, if this is a fraction, the training data's."""
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
    if not hasattr(source, "get"):
      raise InputError(f"{field} is {source!r}; expected {{'path': ...}}")
    unknown = [key for key in source if key not in _SOURCE_KEYS]
    if unknown or not source.get("path"):
      raise InputError(
        f"{field} has {sorted(source)}; expected 'path', and of {', '.join(_SOURCE_KEYS[1:])} "
        "those that are needed"
      )
    for key in ("path", "format"):
      if not isinstance(found := source.get(key) or "", str):
        raise InputError(f"{field}.{key} is {found!r}; expected a text")
    try:
      rate, weight = float(source.get("rate", 0.0)), float(source.get("weight", 1.0))
    except (TypeError, ValueError) as error:
      raise InputError(f"{field}: {error}; expected rate and weight to be numbers") from error
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
  if given and any("rate" not in source for source in config.data.sources.values()):
    raise InputError(
      f"data.sources: {', '.join(given)} have a rate and the others have not; give all one, or none"
    )
  return examples, rates


def check_mapped(config: Any) -> None:
  """Checks that local data have the columns that `data.columns` maps, before anything is read.

  Data of other places are checked as they are read.

  Raises:
    DataError: as `formats.check_mapped`.
  """
  data, common = config.data, config.data.get("columns")
  asked = [(data.train, common), (data.get("shifted", ""), common)]
  if _share(config) is None:
    asked.append((str(data.heldout), common))
  for source in data.sources.values():
    if hasattr(source, "get"):  # what is wrong with another one `_read_sources` says
      asked.append((source.get("path"), source.get("columns") or common))
  for path, columns in asked:
    if columns and isinstance(path, str) and path and expanded(path).exists():
      formats.check_mapped(path, columns)


def parse_objectives(text: str, attributes: Sequence[str]) -> dict[str, str]:
  """'harmless*=harmless,*=helpful' -> {pattern: attribute}, in this order.

  Raises:
    InputError: it has another form, or an attribute is not the model's.
  """
  found = {}
  for part in filter(None, text.split(",")):
    pattern, equals, attribute = (x.strip() for x in part.partition("="))
    if not (pattern and equals and attribute):
      raise InputError(
        f"data.objectives is {text!r}; expected 'pattern=attribute,..', as in "
        "'harmless*=harmless,*=helpful'"
      )
    if attribute not in attributes:
      raise InputError(
        f"data.objectives is {text!r} and model.attributes is {tuple(attributes)}; expected "
        f"{attribute!r} to be one of these"
      )
    found.setdefault(pattern, attribute)
  return found


def _with_objectives(config: Any, examples: list[Example], *, trained: bool) -> list[Example]:
  """The examples with the objectives that data.objectives gives their sources.

  Raises:
    InputError: as `parse_objectives`; or, of training data, a pattern is the first to match none.
  """
  # Configs of older runs do not have the field.
  rules = parse_objectives(config.data.get("objectives", ""), config.model.attributes)
  if not rules:
    return examples
  # A data set of the hub is one source, whose files may be of several objectives.
  names = [(e.source, e.origin.rpartition(":")[0]) for e in examples]
  first = {
    of: next((p for p in rules if any(fnmatch.fnmatchcase(name, p) for name in of)), "")
    for of in set(names)
  }
  if trained and (unused := rules.keys() - first.values()):
    raise InputError(
      f"data.objectives: {', '.join(map(repr, sorted(unused)))} is the first to match nothing; "
      f"the sources are {', '.join(sorted({source for source, _ in first}))}"
    )
  return [
    dataclasses.replace(e, objective=rules[first[of]]) if first[of] else e
    for e, of in zip(examples, names, strict=True)
  ]


def _distinct(examples: list[Example], report: Report) -> list[Example]:
  """Drops examples with the texts of an earlier one, of the same kind and about the same objective.

  Their labels make no difference.
  """
  seen: dict[tuple, Example] = {}
  for example in examples:
    texts = tuple(map(key_of, (example.prompt, *example.responses)))
    key = example.kind, example.objective, texts, example.steps
    first = seen.setdefault(key, example)
    if first is not example:
      same = "the same" if first.labels == example.labels else "other"
      detail = f"the texts of {first.origin}, with {same} labels"
      report.drop("duplicate", example.origin, detail, fault=False)
  return list(seen.values())


def _decided(examples: list[Example], losses: Any, report: Report) -> list[Example]:
  """Drops pairs and rankings that are all ties, if their loss does not learn from ties."""
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
  """Raises DataError if a loss cannot use an example's feedback, or needs margins and has none."""
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
  """Raises DataError if the sum of all weights is 0 or overflows float32.

  At 0 nothing would be learned. A step divides by the sum of its own groups' weights, in float32.

  Logs a warning if one example of more than two outweighs all others together.
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
  """Raises InputError if a model's attributes, or their mix, cannot be learned from the data."""
  # If the checkpoint has a head, that rates the attributes already; pairs alone may train the mix.
  known = model.source is not None and is_classifier(model.source.config)
  ratings = {} if known else train.ratings(model.network.head.attributes)
  judged = {e.objective for e in train.examples}
  none = [name for name, count in ratings.items() if not count and name not in judged]
  if none:
    rated = sorted({n for e in train.examples for one in e.attributes or () for n in one})
    raise InputError(
      f"model.attributes has {', '.join(none)}, which no row of the training data rates and no "
      "source has as its objective; "
      + (f"rated are {', '.join(rated)}" if rated else "they have no feedback on attributes")
    )
  if model.network.head.gate:  # The mix has no part in the reward; the gate learns from objectives.
    if all(e.kind == "attributes" and not e.objective for e in train.examples):
      raise InputError(
        "model.gate is True and the data are ratings on attributes alone, from which the gate "
        "learns nothing; add pairs in data.sources, say in data.objectives which attribute a "
        "source is about, or set model.gate=False"
      )
    return
  if config.optimizer.mix_rate and all(
    e.kind == "attributes" or e.objective for e in train.examples
  ):
    raise InputError(
      f"optimizer.mix_rate is {config.optimizer.mix_rate} and the data are feedback on attributes "
      "alone, which says nothing of what they are worth; add pairs without an objective in "
      "data.sources, or set it to 0"
    )


def read_both(config: Any, report: Report) -> tuple[list[Example], list[Example], dict[str, float]]:
  """Reads the training and the held-out data of a config, as text.

  `data.heldout` is a name that `read` takes, or a fraction of the training conversations. If it is
  not a fraction, training examples whose conversation is held out are dropped and counted. So are
  those of sources with the rate 0 beside others and, with `data.deduplicate`, repeated examples of
  either set.

  Returns:
    (training examples, held-out examples, source -> rate; without the sources that are dropped).

  Raises:
    InputError, OSError: the config does not name training data in one of the two ways, or names
      data that cannot be read or used.
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
  train = _with_objectives(config, train, trained=True)
  share = _share(config)
  # A source with the rate 0, where another has more, is not trained on. A fraction data.heldout is
  # taken of all sources, this one too, to see how the model does on a source that it does not know.
  unseen = {name for name, rate in rates.items() if not rate} if any(rates.values()) else set()
  rates = {name: rate for name, rate in rates.items() if name not in unseen}
  if share is None:
    held = read(str(config.data.heldout), config, report, "heldout")
    held = _with_objectives(config, held, trained=False)
    known = {e.conversation for e in held}
    for example in train:
      if example.conversation in known:
        detail = "its conversation is in data.heldout too"
        report.drop("conversation_is_held_out", example.origin, detail, fault=False)
    train = [e for e in train if e.conversation not in known]
  else:
    # Audits read configs of older runs, which do not have the field.
    seed = config.data.get("split_seed", -1)
    train, held = _split(train, share, config.seed if seed < 0 else seed, "data.heldout")
    conversations = len({e.conversation for e in held})
    if share and conversations < 2:
      total = conversations + len({e.conversation for e in train})
      raise DataError(
        f"data.heldout is {share} of {total} conversations, which holds out {conversations}; "
        "expected at least 2: give more data, a larger fraction, a file, or 0 to hold out none"
      )
  for example in train:
    if example.source in unseen:
      detail = f"data.sources.{example.source}.rate is 0"
      report.drop("not_trained_on", example.origin, detail, fault=False)
  train = [e for e in train if e.source not in unseen]
  if config.data.deduplicate:
    train, held = _distinct(train, report), _distinct(held, report)
  return train, held, rates


def _split(
  examples: list[Example], share: float, seed: int, field: str
) -> tuple[list[Example], list[Example]]:
  """`formats.split`, whose errors name the field of the config."""
  try:
    return formats.split(examples, share, seed)
  except DataError as error:
    raise DataError(f"{field} is {share}: {error}") from error


def _set_aside(config: Any, train: list[Example]) -> tuple[list[Example], list[Example]]:
  """(training examples that are left, those of the conversations set aside as validation data)."""
  share = config.data.get("validation", 0.0)
  if not share:
    return train, []
  seed = config.seed if config.data.split_seed < 0 else config.data.split_seed
  # Another seed than the held-out data's. Both take the conversations with the lowest places (see
  # `formats.split`), and with the same seed the held-out data would have taken these already. The
  # seed of `_part` is another one, too.
  train, aside = _split(train, share, -1 - seed, "data.validation")
  if (found := len({e.conversation for e in aside})) < 2:
    raise DataError(
      f"data.validation is {share}, which sets aside {found} conversation(s); expected at least 2: "
      "give more data, a larger fraction, or 0 for none"
    )
  return train, aside


def _part(config: Any, train: list[Example], report: Report) -> list[Example]:
  """The fraction of the training examples that data.fraction asks for, by conversation."""
  share = config.data.get("fraction", 1.0)  # configs of older runs do not have the field
  if share == 1.0:
    return train
  seed = config.seed if config.data.split_seed < 0 else config.data.split_seed
  # A seed of no other split.
  rest, kept = _split(train, share, -1 - 2**32 - seed, "data.fraction")
  for example in rest:
    detail = f"data.fraction is {share}"
    report.drop("not_in_fraction", example.origin, detail, fault=False)
  return kept


def divided(
  config: Any, train: list[Example], report: Report
) -> tuple[list[Example], list[Example]]:
  """Sets aside data.validation of the training examples, and keeps data.fraction of the others.

  Both are shares of conversations. Since validation data are set aside first, they do not change
  with data.fraction.

  Args:
    config: the run's.
    train: the training examples of `read_both`.
    report: counts those that data.fraction leaves out.

  Returns:
    (the examples that are trained on, those that are set aside as validation data).

  Raises:
    DataError: data.validation is not 0 and would set aside fewer than 2 conversations; or as
      `formats.split`.
  """
  train, aside = _set_aside(config, train)
  return _part(config, train, report), aside


def _with_mismatched(config: Any, model: TextModel, train: TokenDataset) -> TokenDataset:
  """The training data, with responses to other prompts if the loss of outcomes needs them."""
  if not any(e.kind == "outcome" for e in train.examples):
    return train
  if not asks_for_baseline(parse_loss(config.loss.outcome, "loss.outcome")[1]):
    return train
  groups = Mismatched(
    train.groups,
    [e.conversation for e in train.examples],
    max_length=model.convention.max_length,
    seed=config.seed,
  )
  return dataclasses.replace(train, groups=groups)


class Data(NamedTuple):
  """The data of a config, tokenised.

  Attributes:
    train: what the model learns from.
    heldout: what it is reported on.
    validation: what is evaluated as the run goes on, and its best checkpoint is chosen by; of
      conversations of neither of the others. Empty without data.validation.
    report: of what was kept and dropped.
  """

  train: TokenDataset
  heldout: TokenDataset
  validation: TokenDataset
  report: Report


def load_data(config: Any, model: TextModel) -> Data:
  """Reads, checks and tokenises the data of a config.

  Raises:
    ValueError, OSError: the data cannot be read, or they, or their combination with the model or
      the losses, cannot be trained on.
  """
  report = Report(strict=config.data.strict)
  train, held, rates = read_both(config, report)
  train, aside = divided(config, train, report)
  train = _decided(train, config.loss, report)
  _check_fit(train, config.loss)
  kept = cache_folder(config.data.cache)
  datasets = [
    TokenDataset(*model.tokenise(some, report, kept), rates) for some in (train, held, aside)
  ]
  if not datasets[0].groups:
    raise DataError(f"{config.data.train or list(rates)}: no group is left to train on. {report}")
  if held and not datasets[1].groups:
    raise DataError(f"data.heldout is {config.data.heldout}: no group of it is left. {report}")
  if aside and not datasets[2].groups:
    raise DataError(f"data.validation is {config.data.validation}: no group is left. {report}")
  datasets[0] = _with_mismatched(config, model, datasets[0])
  _check_weights(datasets[0].examples)
  _check_attributes(config, model, datasets[0])
  for one in datasets:
    check_vocabulary(one.groups, model.network.backbone.vocab)
  return Data(*datasets, report)


def data_summary(data: Data, attributes: Sequence[str]) -> dict[str, Any]:
  """The section of summary.json on the data."""
  train, heldout, validation, report = data
  return {
    "kept": report.kept,
    "kinds": dict(collections.Counter(e.kind for e in train.examples)),
    "ratings": train.ratings(attributes),
    "dropped": dict(sorted(report.dropped.items())),
    "examples_of_dropped": report.examples,
    "train": len(train.groups),
    "heldout": len(heldout.groups),
    **({"validation": len(validation.groups)} if validation.groups else {}),
    "prompts_cut": sum(g.cut > 0 for g in [*train.groups, *heldout.groups, *validation.groups]),
  }


def load_shifted(config: Any, model: TextModel, heldout: TokenDataset) -> TokenDataset | None:
  """`data.shifted`, data unlike the training data; None if not configured.

  Args:
    config: the run's.
    model: the run's.
    heldout: the data it is compared with.

  Raises:
    InputError: no data are held out to compare with, no group is left, or the tokenizer gives a
      token that the model does not have.
    ValueError, OSError: as `read`.
  """
  if not (name := config.data.shifted):
    return None
  if not heldout.groups:
    raise InputError("data.shifted is compared with data.heldout, which holds nothing out")
  report = Report(strict=config.data.strict)
  examples = read(name, config, report, "heldout")
  found = TokenDataset(*model.tokenise(examples, report, cache_folder(config.data.cache)))
  if not found.groups:
    raise DataError(f"data.shifted is {name!r}: no group is left. {report}")
  check_vocabulary(found.groups, model.network.backbone.vocab)
  return found
