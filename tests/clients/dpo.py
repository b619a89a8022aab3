"""TRL's DPOTrainer on given weights and pairs; run by another environment's Python.

python dpo.py MODEL REFERENCE PAIRS.jsonl RUNS.json FOLDER > steps.json

MODEL, REFERENCE: causal language models, with the model's tokenizer. PAIRS.jsonl: rows in the order
in which they are trained on. RUNS.json: a list of options of DPOConfig, one a run. steps.json:
{"runs": [[{"loss", "gradient_norm"}]], "tokens": [[chosen, rejected]]}, the token ids, prompts
included, as the trainer made them.
"""

import json
import sys

import torch
import transformers
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

transformers.logging.set_verbosity_error()


class Recorder(DPOTrainer):
  """Reads the rows in the file's order, and keeps each step's loss."""

  losses = ()

  def _get_train_sampler(self, dataset=None):
    return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

  def compute_loss(self, *args, **kwargs):
    loss = super().compute_loss(*args, **kwargs)
    self.losses = (*self.losses, loss.item())
    return loss


def read(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main():
  model, reference, pairs, runs, folder = sys.argv[1:]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  with open(runs) as file:
    runs = json.load(file)
  with open(pairs) as file:
    rows = [json.loads(line) for line in file]
  done = []
  for options in runs:
    trainer = Recorder(
      model=read(model),
      ref_model=read(reference),
      processing_class=transformers.AutoTokenizer.from_pretrained(model),
      args=DPOConfig(
        output_dir=folder,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=None,
        **options,
      ),
      train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    done.append(
      [
        {"loss": loss, "gradient_norm": norm}
        for loss, norm in zip(trainer.losses, norms, strict=True)
      ]
    )
  tokens = [
    [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")]
    for row in trainer.train_dataset
  ]
  print("\n" + json.dumps({"runs": done, "tokens": tokens}))


if __name__ == "__main__":
  main()
