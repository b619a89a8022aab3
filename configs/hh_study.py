"""What decides how much of HH-RLHF's preferences a small model learns: one setting at a time.

  python -m experiments.sweep --config=configs/hh_study.py:PATH --workdir=runs/hh_study --seeds=1

PATH is a folder of the published files, one for each part: harmless-base, helpful-base,
helpful-online and helpful-rejection-sampled. Each setting is one run, of MiniLM (22 million
parameters) unless its name says otherwise. A fifth of the conversations is held out, and a tenth of
the others is set aside as validation data. Settings are compared by the validation data; the
held-out figures stand beside them and have no part in any choice.

So that a run takes some 20 minutes on one core, beside another run on a second core, settings are
compared on half of the training conversations. The group `data` says what more of them give.
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
  """The fields that train on some parts and hold out all."""
  return {f"data.sources.{part}.rate": float(n * (part in parts)) for part, n in PARTS.items()}


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
  smol = long | {"model.pretrained": "HuggingFaceTB/SmolLM2-135M-Instruct"} | depth(20)
  smol |= {"optimizer.learning_rate": 1e-4, "optimizer.head_rate": 20.0}
  # On a CPU with bfloat16 instructions a step takes less time so.
  smol |= {"model.dtype": "bfloat16", "data.cells": 2048}
  # The recipe of configs/hh_rlhf.py.
  decoder = gate | smol | {"model.gate_trains": 0.2, "model.mix": (0.27, 0.73)}
  decoder |= at(1e-4, gate=5e-3)
  adapters = {"model.lora.rank": 16}
  all_data = {
    "data.fraction": 1.0,
    "train.epochs": 2.0,
    "train.eval_every": 64,
    "train.best": "loss",
  }
  return {
    "objectives/one head": {},
    "objectives/one head balanced": balanced,
    "objectives/two heads mixed": OBJECTIVES,
    "objectives/two heads and a gate": gate,
    "objectives/two heads and a gate balanced": gate | balanced,
    "objectives/harmless alone": only(harmless) | {"train.epochs": 2.0},
    "objectives/helpful alone": only(*helpful),
    "256 tokens/two heads and a gate": gate | long,
    "256 tokens/at 5e-4": gate | at(5e-4) | long,
    "256 tokens/mean of the response": gate | {"model.pooling": "mean"} | long,
    "256 tokens at 5e-5/one head": slow,
    "256 tokens at 5e-5/one head balanced": balanced | slow,
    "256 tokens at 5e-5/two heads mixed": OBJECTIVES | slow,
    "256 tokens at 5e-5/two heads and a slow gate": gate | slow | {"optimizer.mix_rate": 10.0},
    "parts/all": {},
    "parts/helpful-base": only("helpful-base") | {"train.epochs": 2.0},
    "parts/helpful-online": only("helpful-online") | {"train.epochs": 2.0},
    "parts/helpful-rejection-sampled": only("helpful-rejection-sampled") | {"train.epochs": 2.0},
    "parts/harmless-base and helpful-base": only(harmless, "helpful-base"),
    "rate/2e-4": gate,
    "rate/5e-5": gate | at(5e-5),
    "rate/1e-4": gate | at(1e-4),
    "schedule/cosine": gate,
    "schedule/constant": gate | {"optimizer.schedule": "constant"},
    "layers/all 6": gate,
    "layers/upper 3": gate | {"model.frozen_layers": 3},
    "epochs/1": gate,
    "epochs/2": gate | {"train.epochs": 2.0},
    "length/96 of a prompt": gate,
    "length/128 in all": gate | short,
    "length/256 in all": gate | long,
    "128 tokens/one head": short,
    "128 tokens/two heads and a gate": gate | short,
    "batch/32": gate,
    "batch/16": gate | {"data.batch_groups": 16},
    "noise/none": gate,
    "noise/smoothing 0.1": gate | {"loss.pair": "logistic(smoothing=0.1)"},
    "noise/rate learned": gate | {"loss.pair": "learned_noise"},
    "penalty/none": gate,
    "penalty/centering 0.01": gate | {"loss.centering": 0.01},
    "penalty/decorrelation 0.1": gate | {"loss.decorrelation": 0.1},
    "data/50 %": gate,
    "data/100 %": gate | {"data.fraction": 1.0},
    "data/25 %": gate | {"data.fraction": 0.25},
    "data/12.5 %": gate | {"data.fraction": 0.125},
    "backbone/MiniLM": gate,
    "backbone/SmolLM2 6 of 20 layers": decoder,
    "SmolLM2/two heads and a gate": decoder,
    "SmolLM2/one head": smol,
    "SmolLM2/one head balanced": smol | balanced,
    "SmolLM2/harmless alone": smol | only(harmless) | {"train.epochs": 2.0},
    "SmolLM2/helpful alone": smol | only(*helpful),
    "SmolLM2/the head at the rate of the layers": decoder | {"optimizer.head_rate": 1.0},
    "SmolLM2/the gate trains no layers": decoder | {"model.gate_trains": 0.0},
    "SmolLM2/the objectives' own frequencies": decoder | {"model.mix": ()},
    "SmolLM2/at 3e-4": decoder | at(3e-4, gate=5e-3),
    "SmolLM2/mean of the response": decoder | {"model.pooling": "mean"},
    "SmolLM2/6 of 12 layers": decoder | depth(12),
    "SmolLM2/LoRA": decoder | at(1e-3, gate=5e-3) | adapters,
    "SmolLM2/all data twice": decoder | all_data,
  }
