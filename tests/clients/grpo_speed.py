"""Times TRL's GRPOTrainer on given prompts; run by another environment's Python.

python grpo_speed.py MODEL PROMPTS.json SAMPLES TOKENS PROMPTS_PER_STEP STEPS DTYPE

MODEL: a causal language model with its tokenizer. PROMPTS.json: a list of strings. Each step
samples SAMPLES completions of TOKENS tokens to PROMPTS_PER_STEP prompts and takes one update. It
prints a line of JSON: {"steps", "samples", "tokens": of the completions, "seconds", "peak_bytes"},
without the first step, in which buffers are made.
"""

import json
import resource
import sys
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

transformers.logging.set_verbosity_error()


def reward(completions, **_):
  """The share of the letter e: something that can be learned, at no cost."""
  return [text.count("e") / max(len(text), 1) for text in completions]


class Clock(transformers.TrainerCallback):
  """When each step ended."""

  def __init__(self):
    self.ends = []

  def on_step_end(self, *_, **__):
    self.ends.append(time.perf_counter())


class Counted(GRPOTrainer):
  """Counts the tokens of the completions of each step."""

  tokens = ()

  def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
    self.tokens = (*self.tokens, sum(map(len, completion_ids_list)))
    return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)


def main():
  model, prompts, samples, tokens, batch, steps, dtype = sys.argv[1:]
  torch.manual_seed(0)
  with open(prompts) as file:
    asked = json.load(file)
  size, clock = int(samples) * int(batch), Clock()
  trainer = Counted(
    model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    processing_class=transformers.AutoTokenizer.from_pretrained(model),
    reward_funcs=reward,
    args=GRPOConfig(
      output_dir=tempfile.mkdtemp(),
      per_device_train_batch_size=size,
      steps_per_generation=1,
      num_generations=int(samples),
      max_completion_length=int(tokens),
      max_steps=int(steps) + 1,
      beta=0.04,  # with a reference model, as ours
      learning_rate=1e-5,
      logging_steps=10**6,
      save_strategy="no",
      report_to=[],
      use_cpu=True,
      bf16=dtype == "bfloat16",
      gradient_checkpointing=False,
      disable_tqdm=True,
      seed=0,
    ),
    train_dataset=Dataset.from_list([{"prompt": p} for p in asked]),
    callbacks=[clock],
  )
  trainer.train()
  found = {
    "steps": len(clock.ends) - 1,
    "samples": size * (len(clock.ends) - 1),
    "tokens": sum(trainer.tokens[1:]),
    "seconds": clock.ends[-1] - clock.ends[0],
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  print("\n" + json.dumps(found))


if __name__ == "__main__":
  main()
