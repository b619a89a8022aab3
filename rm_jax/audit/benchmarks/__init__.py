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

BENCHMARKS: dict[str, Benchmark] = {
  bench.name: bench
  for bench in (
    rewardbench.REWARDBENCH,
    rewardbench.REWARDBENCH_2,
    pairs.RM_BENCH,
    pairs.JUDGEBENCH,
    pairs.LLMBAR,
    pairs.GSM8K,
    steps.PROCESSBENCH,
    steps.PRMBENCH,
  )
}
