"""TRL's RewardTrainer on given weights and pairs; run by another environment's Python.

python reward.py MODEL TOKENIZER PAIRS.jsonl OPTIONS.json FOLDER > steps.json

MODEL: a sequence classifier. PAIRS.jsonl: rows in the order in which they are trained on.
OPTIONS.json: options of RewardConfig. steps.json: {"steps": [{"loss", "gradient_norm"}], "tokens":
[[chosen, rejected]]}, the token ids as the trainer made them.
"""

import json
import sys

import torch
import transformers
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

transformers.logging.set_verbosity_error()


class Recorder(RewardTrainer):
  """Reads the rows in the file's order, and keeps each step's loss."""

  losses = ()

  def _get_train_sampler(self, dataset=None):
    return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

  def compute_loss(self, *args, **kwargs):
    loss = super().compute_loss(*args, **kwargs)
    self.losses = (*self.losses, loss.item())
    return loss


def main():
  model, tokenizer, pairs, options, folder = sys.argv[1:]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  with open(options) as file:
    options = json.load(file)
  with open(pairs) as file:
    rows = [json.loads(line) for line in file]
  trainer = Recorder(
    model=transformers.AutoModelForSequenceClassification.from_pretrained(
      model, dtype=torch.float32
    ),
    processing_class=transformers.AutoTokenizer.from_pretrained(tokenizer),
    args=RewardConfig(
      output_dir=folder,
      logging_steps=1,
      report_to=[],
      save_strategy="no",
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      disable_tqdm=True,
      **options,
    ),
    train_dataset=Dataset.from_list(rows),
  )
  trainer.train()
  norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
  steps = [
    {"loss": loss, "gradient_norm": norm} for loss, norm in zip(trainer.losses, norms, strict=True)
  ]
  tokens = [[row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]
  print("\n" + json.dumps({"steps": steps, "tokens": tokens}))


if __name__ == "__main__":
  main()
