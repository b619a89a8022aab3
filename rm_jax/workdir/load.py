"""Reads the model that a run has trained from its workdir: its best or its latest checkpoint."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rm_jax.declared import parse
from rm_jax.errors import InputError
from rm_jax.models.lora import Lora, is_base, merged
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.pretrained.source import RECORD, open_source
from rm_jax.reward.setup import TextModel, kept_dtype, read_params
from rm_jax.storage.remote import local
from rm_jax.workdir.checkpoints import CheckpointError, Checkpoints
from rm_jax.workdir.folder import BEST

log = logging.getLogger(__name__)


def load_run(path: Path, model: TextModel, mesh: Mesh) -> tuple[TextModel, dict]:
  """The text model and the parameters of a workdir's checkpoint, LoRA adapters merged.

  That is the best checkpoint if the run keeps one (`train.best`) and it can be read, otherwise the
  latest.

  Args:
    path: the workdir.
    model: as its model/ folder describes it, without adapters.
    mesh: the devices.

  Raises:
    ValueError: the record is damaged, or the backbone of its adapters is not found or cannot be
      read; or as `parameter_shardings`.
    CheckpointError: no checkpoint can be read, or the adapters were trained on another backbone.
  """
  record = model.source.record
  where = model.source.path / RECORD
  lora = parse(Lora, record["lora"], f"{where}: lora") if record.get("lora") else None
  # A run keeps its frozen layers as a separate stack of parameters; the checkpoint has that layout.
  if type(frozen := record.get("frozen_layers", 0)) is not int:
    raise InputError(f"{where}: frozen_layers is {frozen!r:.80}; expected a whole number")
  network = dataclasses.replace(model.network, frozen=frozen, lora=lora)
  shapes = flatten_dict(network.abstract(), sep="/")
  base: dict[str, jax.Array] = {}
  if name := record.get("base"):
    if not isinstance(name, str):
      raise InputError(f"{where}: base is {name!r:.80}; expected a folder or hub id")
    try:
      source = open_source(local(name))
    except (ValueError, OSError) as error:
      raise InputError(
        f"{path} holds adapters of {name}, which is not there any more: {error}"
      ) from error
    read, _ = read_params(dataclasses.replace(model, network=network, source=source), mesh)
    base = {p: x for p, x in read.items() if is_base(p)}
  shardings = parameter_shardings(shapes, mesh)
  saved = {
    p: jax.ShapeDtypeStruct(x.shape, kept_dtype(network, p), sharding=shardings[p])
    for p, x in shapes.items()
    if p not in base
  }
  # With train.best the folder is there from the run's start, and is empty until an evaluation has
  # the measure.
  best = any(one.name.isdigit() for one in (path / BEST).glob("*"))
  checkpoints = Checkpoints(path / (BEST if best else "checkpoints"))
  try:
    flat = checkpoints.restore_params(saved, base)
  except CheckpointError as error:
    if not best:
      raise
    log.warning("%s: THE SCORES ARE THOSE OF ITS LATEST CHECKPOINT: %s", path, error)
    best, checkpoints = False, Checkpoints(path / "checkpoints")
    flat = checkpoints.restore_params(saved, base)
  newest = max(checkpoints.steps())
  if checkpoints.step != newest:
    log.warning(
      "%s: THE SCORES ARE THOSE OF STEP %d: its latest checkpoint, of step %d, is damaged. The "
      "training command, given again, makes it anew",
      path,
      checkpoints.step,
      newest,
    )
  elif (told := _summary_step(path, best=best)) not in (None, checkpoints.step):
    log.warning(
      "%s: the scores are those of step %d, its %s; summary.json tells of step %d",
      path,
      checkpoints.step,
      "best" if best else "latest",
      told,
    )
  network = dataclasses.replace(network, lora=None)
  if lora:
    shapes = flatten_dict(network.abstract(), sep="/")
    shardings = parameter_shardings(shapes, mesh)
    flat = jax.jit(merged, static_argnums=1, out_shardings=shardings)(flat, lora)
  return dataclasses.replace(model, network=network), unflatten_dict(flat, sep="/")


def _summary_step(path: Path, *, best: bool) -> int | None:
  """The step that a run's summary.json reports; None if it cannot be read or has no such entry."""
  try:
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return int(summary["best"]["step"] if best else summary["train"]["steps"])
  except (OSError, ValueError, KeyError, TypeError):
    return None
