"""Times TRL's DPOTrainer on given pairs; run by another environment's Python.

python dpo_speed.py MODEL PAIRS.jsonl BATCH MAX_LENGTH DTYPE

MODEL: a causal language model with its tokenizer. It prints a line of JSON: {"pairs", "seconds" of
the steps, "reference_seconds" of the precomputation of the reference's log-probabilities,
"peak_bytes"}. Tokenising and set-up are in neither.
"""

import json
import resource
import sys
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

transformers.logging.set_verbosity_error()


class Timed(DPOTrainer):
  reference_seconds = 0.0

  def _precompute_ref_logps(self, *args, **kwargs):
    start = time.perf_counter()
    found = super()._precompute_ref_logps(*args, **kwargs)
    self.reference_seconds += time.perf_counter() - start
    return found


def main():
  model, pairs, batch, max_length, dtype = sys.argv[1:]
  torch.manual_seed(0)
  with open(pairs) as file:
    rows = [json.loads(line) for line in file]
  trainer = Timed(
    model=transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    processing_class=transformers.AutoTokenizer.from_pretrained(model),
    args=DPOConfig(
      output_dir=tempfile.mkdtemp(),
      per_device_train_batch_size=int(batch),
      max_length=int(max_length),
      num_train_epochs=1,
      precompute_ref_log_probs=True,
      logging_steps=10**6,
      save_strategy="no",
      report_to=[],
      use_cpu=True,
      bf16=dtype == "bfloat16",
      gradient_checkpointing=False,
      disable_tqdm=True,
      learning_rate=1e-4,
    ),
    train_dataset=Dataset.from_list(rows),
  )
  start = time.perf_counter()
  trainer.train()
  seconds = time.perf_counter() - start
  found = {"pairs": len(trainer.train_dataset), "seconds": seconds}
  found["reference_seconds"] = trainer.reference_seconds
  found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print("\n" + json.dumps(found))


if __name__ == "__main__":
  main()
