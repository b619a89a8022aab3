"""What decides how much of HH-RLHF's preferences a small model learns: one setting at a time.

  python -m experiments.sweep --config=configs/hh_study.py:PATH --workdir=runs/hh_study --seeds=1

PATH is a folder of the published files, one for each part: harmless-base, helpful-base,
helpful-online and helpful-rejection-sampled. Each setting is one run, of MiniLM (22 million
parameters) or, where its name says so, of the lowest 20 layers of SmolLM2-135M. A fifth of the
conversations is held out, and a tenth of the others is set aside as validation data. Settings are
compared by the validation data; the held-out figures stand beside them and have no part in any
choice.

So that a run takes some 20 minutes on one core, beside another run on a second core, settings are
compared on half of the training conversations. The group `SmolLM2 data` says what more of them
give. In the group `SmolLM2 parts` validation data are of the parts trained on alone, so that their
figures are not comparable: no checkpoint is chosen by them, and the held-out columns say how a
model of some parts does on each.
"""

from pathlib import Path

import ml_collections

from configs import base

# Part -> about how many pairs it has. The rates of a step are in this proportion.
PARTS = {
  "harmless-base": 2312,
  "helpful-base": 2354,
  "helpful-online": 1137,
  "helpful-rejection-sampled": 2749,
}
MEASURES = (
  "validation.accuracy",
  "validation.loss",
  "accuracy",
  *(f"sources.{part}.accuracy" for part in PARTS),
  "train.wall_seconds",
  "train.peak_memory_bytes",
)
RATE = 2e-4  # of the settings that do not try another
OBJECTIVES = {
  "model.attributes": ("helpful", "harmless"),
  "data.objectives": "harmless*=harmless,*=helpful",
}


def get_config(path: str = "") -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "sentence-transformers/all-MiniLM-L6-v2"
  c.model.chat_template = "hh"
  with c.unlocked():
    for part, pairs in PARTS.items():
      # The files' names have the split, as harmless-base.test.jsonl.gz, or are in a folder.
      found = sorted(Path(path).glob(f"{part}*")) if path else []
      c.data.sources[part] = {"path": str(found[0]) if found else "", "rate": float(pairs)}
  c.data.heldout = "0.2"
  c.data.validation = 0.1
  c.data.fraction = 0.5
  c.data.batch_groups = 32
  # Of 128 tokens in all 70 % of the prompts are cut, differently before a longer response, so that
  # the gate weighs a pair's responses differently: see `length`.
  c.data.max_prompt_length = 96
  c.data.max_length = 192
  c.data.cells = 8192
  c.optimizer.learning_rate = RATE
  c.train.epochs = 1.0
  c.train.eval_every = 32
  c.train.best = "accuracy"
  return c


def only(*parts: str) -> dict:
  """The fields that train on some parts, hold out all, and take the last checkpoint."""
  rates = {f"data.sources.{part}.rate": float(n * (part in parts)) for part, n in PARTS.items()}
  return rates | {"train.best": ""}


def at(rate: float, gate: float = 0.05) -> dict:
  """The fields that set the learning rates of the network and of its gate."""
  return {"optimizer.learning_rate": rate, "optimizer.mix_rate": gate / rate}


def depth(layers: int) -> dict:
  """The fields that read the state above a layer and train the six layers below it."""
  return {"model.layers": layers, "model.frozen_layers": layers - 6}


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  harmless, *helpful = PARTS
  # An encoder's gate reads a mean of embeddings, which differs little from prompt to prompt, so
  # that its weights have to become large: at the network's own rate it learns no more than how
  # often each objective occurs. A decoder's reads a hidden state, whose numbers are larger.
  gate = OBJECTIVES | {"model.gate": True} | at(RATE)
  # Limits of a prompt with its response, by which more of a prompt is cut before a longer response.
  short = {"data.max_length": 128, "data.max_prompt_length": 0}
  long = {"data.max_length": 256, "data.max_prompt_length": 0}
  slow = long | {"optimizer.learning_rate": 5e-5}
  balanced = {f"data.sources.{p}.rate": 3.0 if p == harmless else 1.0 for p in PARTS}
  mini = {
    "256 tokens at 5e-5/one head": slow,
    "256 tokens at 5e-5/one head balanced": balanced | slow,
    "256 tokens at 5e-5/two heads mixed": OBJECTIVES | slow,
    "256 tokens at 5e-5/two heads and a slow gate": gate | slow | {"optimizer.mix_rate": 10.0},
    "256 tokens/two heads and a gate": gate | long,
    "256 tokens/at 5e-4": gate | at(5e-4) | long,
    "256 tokens/mean of the response": gate | {"model.pooling": "mean"} | long,
    "128 tokens/one head": short,
    "128 tokens/two heads and a gate": gate | short,
    "192 tokens/one head": {},
    "192 tokens/two heads and a gate": gate,
    "192 tokens/two heads and a gate balanced": gate | balanced,
    "192 tokens/two heads and a gate and a quarter of the data": gate | {"data.fraction": 0.25},
  }
  smol = long | {"model.pretrained": "HuggingFaceTB/SmolLM2-135M-Instruct"} | depth(20)
  smol |= {"optimizer.learning_rate": 1e-4, "optimizer.head_rate": 20.0}
  # On a CPU with bfloat16 instructions a step takes less time so.
  smol |= {"model.dtype": "bfloat16", "data.cells": 2048}
  # The recipe of configs/hh_rlhf.py. Settings whose frozen layers are the same stand together:
  # these are run once for all of them.
  decoder = gate | smol | {"model.gate_trains": 0.2, "model.mix": (0.27, 0.73)}
  decoder |= at(1e-4, gate=5e-3)
  twice = {"train.epochs": 2.0, "train.eval_every": 64, "train.best": "loss"}
  shipped = {
    "SmolLM2/two heads and a gate": {},
    "SmolLM2/the head at the rate of the layers": {"optimizer.head_rate": 1.0},
    "SmolLM2/the gate trains no layers": {"model.gate_trains": 0.0},
    "SmolLM2/the objectives' own frequencies": {"model.mix": ()},
    "SmolLM2/at 3e-4": at(3e-4, gate=5e-3),
    "SmolLM2/a constant rate": {"optimizer.schedule": "constant"},
    "SmolLM2/16 a step": {"data.batch_groups": 16},
    "SmolLM2/smoothing 0.1": {"loss.pair": "logistic(smoothing=0.1)"},
    "SmolLM2/a noise rate that is learned": {"loss.pair": "learned_noise"},
    "SmolLM2/centering 0.01": {"loss.centering": 0.01},
    "SmolLM2/length decorrelation 0.1": {"loss.decorrelation": 0.1},
    "SmolLM2/LoRA": at(1e-3, gate=5e-3) | {"model.lora.rank": 16},
    "SmolLM2/mean of the response": {"model.pooling": "mean"},
    "SmolLM2/6 of 12 layers": depth(12),
    "SmolLM2 data/50 %": {},
    "SmolLM2 data/12.5 %": {"data.fraction": 0.125},
    "SmolLM2 data/25 %": {"data.fraction": 0.25},
    "SmolLM2 data/100 %": {"data.fraction": 1.0, "train.eval_every": 64},
    "SmolLM2 data/100 % twice": {"data.fraction": 1.0} | twice,
  }
  heads = {
    "SmolLM2/one head": {},
    "SmolLM2/one head balanced": balanced,
    "SmolLM2 parts/all": {},
    "SmolLM2 parts/harmless-base": only(harmless) | {"train.epochs": 2.0},
    "SmolLM2 parts/helpful": only(*helpful),
    "SmolLM2 parts/helpful-base": only("helpful-base") | {"train.epochs": 2.0},
    "SmolLM2 parts/helpful-online": only("helpful-online") | {"train.epochs": 2.0},
    "SmolLM2 parts/rejection-sampled": only("helpful-rejection-sampled") | {"train.epochs": 2.0},
    "SmolLM2 parts/harmless-base and helpful-base": only(harmless, "helpful-base"),
  }
  smols = {name: decoder | changes for name, changes in shipped.items()}
  smols |= {name: smol | changes for name, changes in heads.items()}
  return mini | smols
