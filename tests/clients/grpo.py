"""Two steps of TRL's GRPOTrainer with an export as its reward; run by another environment's Python.

python grpo.py EXPORT POLICY PROMPTS.json FOLDER > rewards.json

PROMPTS.json: a list of conversations, or of strings. rewards.json: {"rows": [{"prompt",
"completion", "reward"}]}, with the rewards that the trainer got.
"""

import json
import sys

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

transformers.logging.set_verbosity_error()


class Recorder(GRPOTrainer):
  """Keeps the rewards of each call."""

  rows = ()

  def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
    rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
    for prompt, completion, reward in zip(prompts, completions, rewards[:, 0], strict=True):
      row = {"prompt": prompt, "completion": completion, "reward": reward.item()}
      self.rows = (*self.rows, row)
    return rewards


def main():
  export, policy, prompts, folder = sys.argv[1:]
  torch.manual_seed(0)
  torch.set_num_threads(1)
  with open(prompts) as file:
    asked = json.load(file)
  trainer = Recorder(
    model=transformers.AutoModelForCausalLM.from_pretrained(policy),
    processing_class=transformers.AutoTokenizer.from_pretrained(policy),
    reward_funcs=export,
    args=GRPOConfig(
      output_dir=folder,
      per_device_train_batch_size=4,
      num_generations=4,
      max_completion_length=12,
      max_steps=2,
      report_to=[],
      save_strategy="no",
      use_cpu=True,
      bf16=False,
      disable_tqdm=True,
      seed=0,
    ),
    train_dataset=Dataset.from_list([{"prompt": p} for p in asked]),
  )
  trainer.train()
  print("\n" + json.dumps({"rows": trainer.rows}))


if __name__ == "__main__":
  main()
