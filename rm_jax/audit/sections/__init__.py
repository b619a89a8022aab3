"""The sections of the audit, in the order of the page. A new one is a module and an entry here.

Most modules have plain functions, which a notebook can call, of scores that are given or of any
function `score(rows)`. Each has a `SECTION`, which tells an audit how to measure with them, and
draws and writes results.
"""

from rm_jax.audit.section import Section
from rm_jax.audit.sections import (
  agreement,
  benchmarks,
  best_of,
  calibration,
  compare,
  controls,
  drift,
  hacking,
  objectives,
  overoptimisation,
  policies,
  robustness,
  rules,
  shaping,
)

SECTIONS: tuple[Section, ...] = (
  agreement.SECTION,
  objectives.SECTION,
  compare.SECTION,
  controls.SECTION,
  calibration.SECTION,
  robustness.SECTION,
  drift.SECTION,
  hacking.SECTION,
  overoptimisation.SECTION,
  policies.SECTION,
  best_of.SECTION,
  shaping.SECTION,
  rules.SECTION,
  benchmarks.SECTION,
)
