"""Makes what a commit of rm_jax leaves behind, or reads it: workdirs, exports, calibrations.

  python tests/golden/make.py make FOLDER [CASE ...]
  python tests/golden/make.py read FOLDER OUT.json

`make` trains one small model a case with the rm_jax that Python finds, and leaves in FOLDER/CASE:
the data, `run/` (a workdir, with the calibration and the drift reference of an audit), `export/`
(of `save_pretrained`), `audit.json` and `scores.json`. `read` loads these again, perhaps with a
later rm_jax, and writes what it read in the form of scores.json. It imports no helper of the tests,
for it runs in the checkout of an old commit, whose helpers are other ones.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tokenizers
import transformers

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.train import loop

CHAT = (
  "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}"
  "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
LLAMA = {
  "model_type": "llama",
  "vocab_size": 260,
  "hidden_size": 8,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 128,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
BERT = {
  "model_type": "bert",
  "vocab_size": 260,
  "hidden_size": 8,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 128,
  "pad_token_id": 0,
}
# Case -> fields of its config; 'bert' in the name takes the encoder.
CASES = {
  "llama": {},
  "hh": {"model.chat_template": "hh"},
  "bert": {"model.chat_template": "hh"},
  "mean": {"model.pooling": "mean"},
  "none": {"model.eos": "none", "data.max_length": 48},
  "frozen": {"model.frozen_layers": 1},
  "lora": {"model.lora.rank": 2},
  "ensemble": {"model.members": 3},
  "attributes": {"model.attributes": ("letter", "brevity")},
  "steps": {"loss.step": "process"},
}
KEPT = ("llama", "hh", "bert")  # the small copy in the repository


def tokenizer(encoder: bool):
  """One token a byte; a decoder's adds BOS, an encoder's has BERT's pair encoding."""
  specials = ["<pad>", "[CLS]", "[SEP]"] if encoder else ["<pad>", "<s>", "</s>"]
  pieces = specials + sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, []))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  if encoder:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single="[CLS] $A [SEP]",
      pair="[CLS] $A [SEP] $B:1 [SEP]:1",
      special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend,
      cls_token="[CLS]",
      sep_token="[SEP]",
      pad_token="<pad>",
      model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
  )
  fast.chat_template = CHAT
  return fast


def _word(rng, odds: float) -> str:
  return "".join(rng.choice(["a", "b"], rng.integers(4, 12), p=[odds, 1 - odds]))


def _row(case: str, rng, i: int) -> dict:
  """One row of feedback: strings and messages by turns, where the case may have both."""
  prompt = f"{i} {_word(rng, 0.5)} "
  if case == "attributes":
    response = _word(rng, float(rng.random()))
    ratings = {"letter": response.count("a") / 4, "brevity": 2 - len(response) / 4}
    return {"prompt": prompt, "response": response, "attributes": ratings}
  if case == "steps":
    steps = [_word(rng, 0.6) for _ in range(3)]
    right = [bool(np.cumprod([s.count("a") > 2 for s in steps])[k]) for k in range(3)]
    return {"prompt": prompt, "completions": steps, "labels": right}
  good, bad = _word(rng, 0.8), _word(rng, 0.2)
  if rng.random() < 0.25:  # labels without an error have no finite temperature
    good, bad = bad, good
  if i % 2:
    return {"prompt": prompt, "chosen": good, "rejected": bad}
  turns = [{"role": "user", "content": prompt}]
  return {
    "prompt": turns,
    "chosen": [{"role": "assistant", "content": good}],
    "rejected": [{"role": "assistant", "content": bad}],
  }


def rows(case: str) -> list[dict]:
  """What is scored: prompts and responses (steps, of a step model), short ones and one long."""
  rng = np.random.default_rng(7)
  if case == "steps":
    return [{"prompt": f"{i} ", "completions": [_word(rng, 0.5)] * (1 + i % 3)} for i in range(6)]
  out = []
  for i in range(6):
    prompt, response = f"{i} {_word(rng, 0.5)}", _word(rng, 0.5)
    out.append({"prompt": prompt, "response": response})
    if case != "attributes":
      turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": prompt * (6 if i == 5 else 1)},
      ]
      out.append({"prompt": turns, "response": [{"role": "assistant", "content": response}]})
  return out


def _config(case: str, folder: Path, steps: int):
  c = get_config()
  c.model.config, c.model.tokenizer = str(folder / "start/config.json"), str(folder / "start")
  c.data.train, c.data.heldout = str(folder / "train.jsonl"), str(folder / "heldout.jsonl")
  c.data.batch_groups, c.data.row_lengths, c.data.max_length = 8, (128,), 128
  c.data.cache = "none"
  c.optimizer.learning_rate, c.optimizer.decay_steps = 1e-2, 12
  c.train.steps, c.train.log_every, c.train.eval_every = steps, 1, 6
  c.train.keep = 1
  c.update_from_flattened_dict(CASES[case])
  return c


def make(case: str, folder: Path) -> None:
  """Trains, exports, audits and scores one case into a folder of its own."""
  start = folder / "start"
  start.mkdir(parents=True)
  encoder = case == "bert"
  tokenizer(encoder).save_pretrained(start)
  (start / "config.json").write_text(json.dumps(BERT if encoder else LLAMA))
  rng = np.random.default_rng(0)
  for name, count in (("train", 48), ("heldout", 24)):
    lines = [json.dumps(_row(case, rng, i)) + "\n" for i in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(lines))
  loop.train(_config(case, folder, 8), folder / "run")
  RewardModel.from_pretrained(folder / "run").save_pretrained(folder / "export")
  if case not in ("attributes", "steps"):
    audit(folder, folder / "audit")
  (folder / "scores.json").write_text(json.dumps(scores(case, folder), indent=1) + "\n")


def audit(folder: Path, out: Path, *flags: str) -> None:
  """An audit with --calibrate, in a process of its own; its report.json is kept as OUT.json."""
  data = folder / "heldout.jsonl"
  subprocess.run(
    [
      *(sys.executable, "-m", "experiments.audit", f"--model={folder / 'run'}", f"--data={data}"),
      *(f"--out={out}", "--calibrate", "--cache=none", "--sample=4", *flags),
    ],
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  report = json.loads((out / "report.json").read_text())
  out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


def scores(case: str, folder: Path) -> dict[str, list]:
  """The rewards of `rows` by the workdir and by the export: float32 as JSON's numbers, exact."""
  found = {}
  for name in ("run", "export"):
    model = RewardModel.from_pretrained(folder / name)
    found[name] = model.score(rows(case)).tolist()
    if case == "ensemble":
      found[f"{name}, members"] = model.score_members(rows(case)).tolist()
    if case == "attributes":
      found[f"{name}, ratings"] = model.score_attributes(rows(case)).tolist()
    if case == "steps":
      found[f"{name}, steps"] = [one.tolist() for one in model.score_steps(rows(case))]
  return found


def resumed(case: str, folder: Path, workdir: Path) -> None:
  """Goes on with (a copy of) the case's run, to 12 steps."""
  loop.train(_config(case, folder, 12), workdir)


if __name__ == "__main__":
  what, root, *names = sys.argv[1:]
  if what == "make":
    for one in names or CASES:
      make(one, Path(root) / one)
  elif what == "read":
    there = {path.name: scores(path.name, path) for path in sorted(Path(root).iterdir())}
    Path(names[0]).write_text(json.dumps(there))
  elif what == "resume":
    resumed(names[0], Path(root) / names[0], Path(names[1]))
  elif what == "audit":
    audit(Path(root) / names[0], Path(names[1]))
  else:
    raise SystemExit(f"{what!r}: expected make, read, resume or audit")
