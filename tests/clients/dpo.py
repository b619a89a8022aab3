"""TRL's trainers of preferences on given weights and rows; run by another environment's Python.

python dpo.py MODEL REFERENCE ROWS.jsonl RUNS.json FOLDER > steps.json

MODEL, REFERENCE: causal language models, with the model's tokenizer. ROWS.jsonl: in the order in
which they are trained on. RUNS.json: a list of options of the trainer's config, one a run; their
'trainer' is 'dpo', 'kto' or 'cpo'. steps.json: {"runs": [[{"loss", "gradient_norm"}]], "tokens":
[[ids of each of a row's sequences]]}, prompts included, as the last run's trainer made them.
"""

import json
import sys

import torch
import transformers
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

transformers.logging.set_verbosity_error()

TRAINERS = {
  "dpo": (DPOConfig, DPOTrainer),
  "kto": (KTOConfig, KTOTrainer),
  "cpo": (CPOConfig, CPOTrainer),
}


def recorder(base):
  """A trainer that reads the rows in the file's order, and keeps each step's loss."""

  class Recorder(base):
    losses = ()

    def _get_train_sampler(self, dataset=None):
      return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    def compute_loss(self, *args, **kwargs):
      loss = super().compute_loss(*args, **kwargs)
      self.losses = (*self.losses, loss.item())
      return loss

  return Recorder


def read(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokens_of(row):
  if "chosen_input_ids" in row:
    return [row["chosen_input_ids"], row["rejected_input_ids"]]
  own = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in row]
  return [row["prompt_ids"] + row[name] for name in own]


def run(model, reference, rows, options, folder):
  """(the trainer after its run, its steps)."""
  name = options.pop("trainer")
  config, trainer = TRAINERS[name]
  trainer = recorder(trainer)(
    model=read(model),
    **({} if name == "cpo" else {"ref_model": read(reference)}),
    processing_class=transformers.AutoTokenizer.from_pretrained(model),
    args=config(
      output_dir=folder,
      logging_steps=1,
      report_to=[],
      save_strategy="no",
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      disable_tqdm=True,
      max_length=2048,
      **options,
    ),
    train_dataset=Dataset.from_list(rows),
  )
  trainer.train()
  norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
  steps = zip(trainer.losses, norms, strict=True)
  return trainer, [{"loss": loss, "gradient_norm": norm} for loss, norm in steps]


def main():
  model, reference, rows, runs, folder = sys.argv[1:]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  with open(runs) as file:
    runs = json.load(file)
  with open(rows) as file:
    rows = [json.loads(line) for line in file]
  done = []
  for options in runs:
    trainer, steps = run(model, reference, rows, options, folder)
    done.append(steps)
  tokens = [tokens_of(row) for row in trainer.train_dataset]
  print("\n" + json.dumps({"runs": done, "tokens": tokens}))


if __name__ == "__main__":
  main()
