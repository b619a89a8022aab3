"""Published benchmarks of reward models: readers of their files, and their metrics as published.

  from rm_jax.audit.benchmarks import BENCHMARKS
  bench = BENCHMARKS["llmbar"]
  report = bench.evaluate(score, bench.load(folder, messages=True, report=Report()))

To add a benchmark, make a `Benchmark`, whose docstring says what `load` and `evaluate` take and
return, and list it in `BENCHMARKS`.
"""

from rm_jax.audit.benchmarks import pairs, rewardbench, steps
from rm_jax.audit.benchmarks.items import Benchmark, Item

__all__ = ["BENCHMARKS", "Benchmark", "Item"]

# Behind each, its data set on the Hugging Face hub where there is one.
BENCHMARKS: dict[str, Benchmark] = {
  bench.name: bench
  for bench in (
    rewardbench.REWARDBENCH,  # allenai/reward-bench:filtered
    rewardbench.REWARDBENCH_2,  # allenai/reward-bench-2:test
    pairs.RM_BENCH,  # THU-KEG/RM-Bench
    pairs.JUDGEBENCH,  # ScalerLab/JudgeBench:gpt
    pairs.LLMBAR,  # princeton-nlp/LLMBar
    pairs.GSM8K,
    steps.PROCESSBENCH,  # Qwen/ProcessBench:gsm8k, :math ...
    steps.PRMBENCH,  # hitsmy/PRMBench_Preview
  )
}
