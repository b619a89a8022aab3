"""`TextModel`: a network with its tokenizer; built from a config, its parameters read or made.

The parts of a model, each made of the one before it:

  `models.network.Network`  a backbone and a head: pure functions of (parameters, batch of tokens)
  `TextModel`               a `Network`, its tokenizer, and how text becomes tokens
  `rm_jax.RewardModel`      a `TextModel` with parameters on devices: text in, scores out
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from rm_jax.batch.cache import tokenise_cached
from rm_jax.batch.group import Group
from rm_jax.batch.tokenise import TEMPLATES, Convention, TextEncoder
from rm_jax.data.report import Report
from rm_jax.declared import parse
from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig
from rm_jax.models.lora import is_base
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.pretrained import hf
from rm_jax.pretrained.config import (
  backbone_config,
  family_of,
  is_classifier,
  skipped_token,
)
from rm_jax.pretrained.source import RECORD, Source, load_tokenizer
from rm_jax.reward import verdict
from rm_jax.reward.architecture import architecture, build_network
from rm_jax.storage.files import expanded
from rm_jax.storage.remote import local
from rm_jax.types import Example
from rm_jax.world import make_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reference:
  """Which language model an implicit reward is relative to; saved with the model.

  Attributes:
    name: an absolute path, a URL or a hub id.
    fingerprint: of its parameters (`parallel.fingerprint.fingerprint_of`).
    dtype: to which its parameters are rounded: 'float32', or `model.lora.base_dtype` of the run
      whose start it was.

  Raises InputError for another dtype.
  """

  name: str
  fingerprint: str
  dtype: str = "float32"

  def __post_init__(self):
    if self.dtype not in ("float32", "bfloat16"):
      raise InputError(f"reference.dtype is {self.dtype!r}; expected 'float32' or 'bfloat16'")


@dataclasses.dataclass(frozen=True)
class TextModel:
  """A network with all that turns text into its input; parameters are kept apart from it.

  Attributes:
    network: see `models.network.Network`.
    tokenizer: Hugging Face's, with the chat template that the model was trained with.
    convention: EOS, BOS, pooling and the maximum length; see `batch.tokenise.Convention`.
    config: config.json's dictionary, of the checkpoint that the model came from or, with random
      weights, of model.config.
    source: where its weights are; None for random ones.
    option: in error messages, how the caller sets an option; {0} is the option's name.
    reference: of an implicit reward that has one, once it is known; else None.
    words: the words whose rows of the language-model head a new head is made of, (good, bad); () =
      a new head is random. See `reward.verdict`.
  """

  network: Network
  tokenizer: Any
  convention: Convention
  config: dict[str, Any]
  source: Source | None
  option: str = "--config.model.{0}"
  reference: Reference | None = None
  words: tuple[str, ...] = ()

  def text_encoder(self) -> TextEncoder:
    """What turns text into tokens by the model's convention.

    Raises:
      ValueError: the chat template cannot be used, or the convention needs an EOS that the
        tokenizer does not have.
    """
    return TextEncoder(self.tokenizer, self.convention, option=self.option)

  def tokenise(
    self, examples: Sequence[Example], report: Report, folder: Path | None = None
  ) -> tuple[Sequence[Group], list[Example]]:
    """Tokenises feedback: see `batch.cache.tokenise_cached`.

    Args:
      examples: of any kind.
      report: counts the examples that are dropped.
      folder: of the token cache; None = no cache.

    Returns:
      (groups; the examples that they are made of, in the same order).

    Raises:
      ValueError: as `text_encoder` and `batch.group.tokenise`.
    """
    attributes = self.network.head.attributes
    found = tokenise_cached(examples, self.text_encoder(), report, attributes, folder=folder)
    return with_likelihood(*found, report) if self.network.implicit else found

  def exported_config(self) -> dict[str, Any]:
    """config.json of the model when saved.

    It is a Hugging Face sequence classifier's, or, where the reward is implicit, that of a language
    model.
    """
    if self.network.implicit:
      return self.config | {
        "architectures": [family_of(self.config).language_model],
        "tie_word_embeddings": self.network.head.tied,
        "torch_dtype": "float32",
      }
    head = self.network.head
    labels = head.attributes or tuple(f"LABEL_{i}" for i in range(head.outputs))
    config = dict(self.config)
    config.pop("num_labels", None)
    config |= {
      "architectures": [family_of(config).classifier],
      "id2label": {str(i): label for i, label in enumerate(labels)},
      "label2id": {label: i for i, label in enumerate(labels)},
      "torch_dtype": "float32",
    }
    return config

  def record(self) -> dict[str, Any]:
    """The dictionary of rm_jax.json: what config.json has no fields for."""
    convention = dataclasses.asdict(self.convention)
    if convention["bos"] == "template":
      # A record without the field means 'template'. So a model of an older version that is saved
      # again has the record that it had.
      del convention["bos"]
    for name, default in (("question", ""), ("pad", None), ("max_prompt_length", 0)):
      if convention[name] == default:
        del convention[name]
    head = dataclasses.asdict(self.network.head)
    if self.network.implicit:
      read = {
        "implicit": {
          "beta": head["beta"],
          "normalised": head["normalised"],
          "reference": self.reference and dataclasses.asdict(self.reference),
        }
      }
    else:
      # Likewise: a record without these fields has their defaults.
      for name, default in (("gate", False), ("steps", "own")):
        if head[name] == default:
          del head[name]
      read = {"head": head}
    record = {"convention": convention, **read, "frozen_layers": self.network.frozen}
    if self.network.lora:
      record |= {"lora": dataclasses.asdict(self.network.lora), "base": self.base}
    return record

  @property
  def base(self) -> str:
    """Where the backbone that LoRA adapters belong to is read from again: a path, URL or hub id.

    A run with adapters does not save that backbone. '' without adapters, or where the backbone had
    random weights, and is saved with them.
    """
    if self.source is None or self.network.lora is None:
      return ""
    return lasting_name(self.source)


def lasting_name(source: Source) -> str:
  """A source's name, which finds it from other working directories too: a path is made absolute."""
  path = expanded(source.name)
  return str(path.resolve()) if path.exists() else source.name


def without_likelihood(group: Group) -> bool:
  """Whether some mark of a group has no token of its own response before it, or at it.

  A prompt's tokens are not the response's, and nothing predicts the first token of all.
  """
  tokens = np.asarray([len(ids) for ids in group.ids])[group.response]
  return bool((group.marks < np.maximum(1, tokens - group.length)).any())


def with_likelihood(
  groups: Sequence[Group], examples: list[Example], report: Report
) -> tuple[Sequence[Group], list[Example]]:
  """Drops and counts the groups in which a response has no likelihood (`without_likelihood`)."""
  bad = {i for i, group in enumerate(groups) if without_likelihood(group)}
  if not bad:
    return groups, examples
  for i in sorted(bad):
    detail = "a response has no token of its own that a language model would predict"
    report.drop("no_likelihood", examples[i].origin, detail)
  good = [i for i in range(len(examples)) if i not in bad]
  return [groups[i] for i in good], [examples[i] for i in good]


def convention_for(
  hf_config: dict[str, Any],
  record: dict[str, Any],
  tokenizer: Any,
  *,
  eos: str,
  max_length: int,
  max_prompt_length: int = 0,
  pooling: str = "",
  question: str = "",
) -> Convention:
  """The convention of a checkpoint: as saved with it, else the default of its architecture.

  Args:
    hf_config: config.json's dictionary.
    record: rm_jax.json's dictionary; empty if there is none.
    tokenizer: the model's.
    eos: 'append', 'none' or 'auto' (append if the tokenizer has an EOS, the checkpoint is a
      decoder without a reward head, and there is no question). A saved convention takes precedence,
      except where a question is new.
    max_length: most tokens of a prompt + response; 0 = the saved limit, else the architecture's.
      It never exceeds the architecture's.
    max_prompt_length: most tokens of a prompt; 0 = the saved limit, else none.
    pooling: 'last' (decoders), 'first' (encoders) or 'mean'; 'hf' only for another library's
      decoder with a head; '' = that of the checkpoint's head, else the architecture's.
    question: what a judge is asked of each response; '' = as saved, else nothing.

  Raises:
    InputError: `pooling` is not one that the architecture or the checkpoint's head allows; the
      checkpoint has a head and there is a question behind which it was not trained; `Convention`
      refuses `eos`, `max_length`, or a question beside them; the record is damaged, or contradicts
      config.json; or that is one that `backbone_config` or `skipped_token` refuses.
  """
  backbone = backbone_config(hf_config)
  positions, decoder = backbone.max_positions, isinstance(backbone, DecoderConfig)
  imported = is_classifier(hf_config)
  # What a run with an implicit reward saved is a language model: a new head may read it as it asks.
  headed = imported or (bool(record) and "implicit" not in record)
  asked = ""
  usual = ("hf" if imported else "last") if decoder else "first"
  if record:
    found = record.get("convention")
    # A record without `bos` is of a version that added no BOS to the text of a chat template.
    found = {"bos": "template"} | found if isinstance(found, dict) else found
    saved = parse(Convention, found, f"{RECORD}: convention")
    usual, asked = record["convention"].get("pooling", usual), saved.question
    if saved.encoder == decoder:
      raise InputError(
        f"{RECORD}: convention.encoder is {saved.encoder} and config.json's model_type is "
        f"{hf_config['model_type']!r}; expected {not decoder}"
      )
  known = (usual,) if headed else (usual, "mean")
  if pooling not in ("", *known):
    raise InputError(
      f"model.pooling is {pooling!r}; expected {' or '.join(map(repr, known))}, which "
      + ("the checkpoint's head was trained with" if len(known) == 1 else "its architecture can do")
    )
  if question and headed and question != asked:
    raise InputError(
      f"model.question is {question!r:.80}, and the checkpoint has a head that was trained behind "
      f"{asked!r:.80}; expected model.question='', which keeps that, or a language model"
    )
  if record:
    saved = dataclasses.replace(
      saved,
      max_length=min(max_length or saved.max_length, positions),
      max_prompt_length=max_prompt_length or saved.max_prompt_length,
    )
    if headed:
      return saved
    fields = {"pooling": pooling or usual}
    if question:  # behind which no EOS is appended, unless one asks for it
      fields |= {"question": question, "eos": "none" if eos == "auto" else eos}
    return dataclasses.replace(saved, **fields)
  if eos == "auto":
    appends = decoder and not (imported or question) and tokenizer.eos_token_id is not None
    eos = "append" if appends else "none"
  return Convention(
    encoder=not decoder,
    eos=eos,
    pooling=pooling or usual,
    max_length=min(max_length or positions, positions),
    max_prompt_length=max_prompt_length,
    # A head that another library trained on messages has seen what the chat template renders, and
    # no further BOS from the tokenizer.
    bos="template" if imported and tokenizer.chat_template else "add",
    question=question,
    pad=skipped_token(hf_config) if usual == "hf" else None,
  )


def chat_template(name: str) -> str:
  """The Jinja text of a chat template.

  Args:
    name: a name in `batch.tokenise.TEMPLATES`, Jinja text itself, or a file or URL of it.

  Raises:
    InputError: it is none of them, or a file that is not UTF-8.
    OSError: it cannot be read.
  """
  if name in TEMPLATES:
    return TEMPLATES[name]
  if "{" in name:
    return name
  if Path(local(name)).is_file():
    try:
      return Path(local(name)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise InputError(f"chat_template {name}: {error}; expected a text file in UTF-8") from error
  raise InputError(
    f"chat_template {name!r} is neither Jinja text, nor a file, nor one of {list(TEMPLATES)}"
  )


def build_model(
  config: Any, mesh: Mesh | None = None, *, earlier: dict[str, Any] | None = None
) -> TextModel:
  """The text model that a config describes; no weights are read (see `init_params`).

  Args:
    config: an experiment's, see configs/base.py.
    mesh: the devices, which decide the attention kernel; see `architecture.build_network`.
    earlier: the record (rm_jax.json) of a run that is resumed: its settings of BOS and of the token
      that its pooling passes over are kept.

  Raises:
    FileNotFoundError: the model or the tokenizer that the config names is not found.
    OSError: what is at a URL cannot be read.
    InputError: the config's `model` part cannot be satisfied.
  """
  c = config.model
  source, hf_config = architecture(config)
  if not c.tokenizer and source is None:
    raise InputError("--config.model.config needs --config.model.tokenizer beside it")
  tokenizer = _tokenizer(c.tokenizer) if c.tokenizer else source.tokenizer()
  network = build_network(config, hf_config, source, mesh=mesh)
  record = source.record if source else {}
  # Configs of older runs do not have these fields.
  question, words = c.get("question", ""), ()
  if c.get("head_init", "random") == "verdict":
    words, said = tuple(c.verdict_words), "model.head_init is 'verdict'"
    verdict.check(source, network.head, words, said)
    if c.layers:
      raise InputError(
        f"{said} and model.layers {c.layers}: the language-model head was trained on the output of "
        "all layers, and would read another's; expected model.layers=0"
      )
    question = verdict.question_of(question, words)
  if question and network.implicit:
    raise InputError(
      f"model.question is {question!r:.60} and model.reward 'implicit', which would count the "
      "likelihood of the question as the response's; expected model.question=''"
    )
  convention = convention_for(
    hf_config,
    record,
    tokenizer,
    eos=c.eos,
    max_length=config.data.max_length,
    max_prompt_length=config.data.get("max_prompt_length", 0),
    pooling=c.pooling,
    question=question,
  )
  if c.chat_template:
    tokenizer.chat_template = chat_template(c.chat_template)
  if earlier:
    saved = earlier.get("convention", {})
    kept = {"bos": saved.get("bos", "template"), "pad": saved.get("pad")}
    convention = dataclasses.replace(convention, **kept)
  model = TextModel(
    network=network,
    tokenizer=tokenizer,
    convention=convention,
    config=hf_config,
    source=source,
    words=words,
  )
  if words:
    model.text_encoder().verdict_ids(words)  # raises for words that begin alike
  return model


def _tokenizer(name: str) -> Any:
  return make_tokenizer() if name == "world" else load_tokenizer(local(name))


def kept_dtype(network: Network, path: str) -> np.dtype:
  """Dtype in which a parameter is stored: float32, but `lora.base_dtype` for a frozen base."""
  base = network.lora is not None and is_base(path)
  return jnp.dtype(network.lora.base_dtype if base else jnp.float32)


def read_params(model: TextModel, mesh: Mesh) -> tuple[dict[str, jax.Array], list[str]]:
  """Reads the parameters of a model's source, each one created with its sharding.

  Args:
    model: with a source.
    mesh: the devices.

  Returns:
    (path -> parameter on the mesh, of those that Hugging Face has a tensor for; paths of the head's
    parameters if the source has no head).

  Raises:
    WeightsError: as `hf.load_params`.
    InputError: as `parameter_shardings`.
  """
  network = model.network
  shardings = parameter_shardings(flatten_dict(network.abstract(), sep="/"), mesh)

  def place(path: str, array: np.ndarray) -> jax.Array:
    dtype = kept_dtype(network, path)
    return jax.make_array_from_callback(
      array.shape, shardings[path], lambda index: array[index].astype(dtype, copy=False)
    )

  spare = backbone_config(model.source.config).layers - network.backbone.layers
  loaded, missing = hf.load_params(
    network, model.source.tensors(), place, source=str(model.source.path), spare=spare
  )
  return _flat(loaded), missing


def init_params(
  model: TextModel, mesh: Mesh, key: jax.Array, *, training: bool
) -> dict[str, jax.Array]:
  """Parameters on the mesh, path -> array: read from the source, else random.

  Every array is created with its sharding, so that no device holds more than its shard.

  Args:
    model: from `build_model`.
    mesh: the devices.
    key: random key for the parameters that are not read: all, or those of a missing head that is
      no verdict, of a gate and of adapters.
    training: whether a missing head is initialised at random, with a warning; if not, it is an
      error. A model with `words` gets their verdict for a head in either case, without a warning.

  Raises:
    WeightsError: as `read_params` and `verdict.head_params`; or there is no head, no `words`, and
      `training` is false.
    InputError: as `read_params`; or, with `words`, as `TextModel.text_encoder` and
      `TextEncoder.verdict_ids`.
  """
  network = model.network
  abstract = flatten_dict(network.abstract(), sep="/")
  if model.source is None:
    return _random(network, tuple(abstract), mesh)(key)
  flat, missing = read_params(model, mesh)
  if missing and model.words:
    ids = model.text_encoder().verdict_ids(model.words)
    flat |= verdict.head_params(model.source, flat, ids, mesh)
  elif missing:
    names = [name for path in missing for name in hf.hf_names(network, path)]
    if not training:
      raise hf.WeightsError(
        f"{model.source.path}: has no reward head ({', '.join(names)}), so it has no scores to "
        "give; train one first"
      )
    log.warning("%s: no reward head (%s): a new one is made", model.source.path, ", ".join(names))
  if rest := [path for path in abstract if path not in flat]:
    flat |= _random(network, tuple(rest), mesh)(key)
  return {path: flat[path] for path in abstract}


@functools.lru_cache(maxsize=8)
def _random(network: Network, paths: tuple[str, ...], mesh: Mesh) -> Callable[[jax.Array], dict]:
  """key -> the network's random parameters of these paths, jitted; kept for the next model."""
  shardings = parameter_shardings(flatten_dict(network.abstract(), sep="/"), mesh)

  def make(key):
    flat = _flat(network.init(key))
    return {path: flat[path].astype(kept_dtype(network, path)) for path in paths}

  return jax.jit(make, out_shardings={path: shardings[path] for path in paths})


def _flat(tree: dict) -> dict[str, Any]:
  return flatten_dict(tree, sep="/")
