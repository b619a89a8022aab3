"""The sections of the audit, in the order of the page. A new one is a module and a line here.

Each module measures with plain functions of any `score(rows)` and examples, which a notebook can
call; and has `SECTION`, which says how an audit calls them, and draws and writes what they found.
"""

from rm_jax.audit.section import Section
from rm_jax.audit.sections import (
  agreement,
  benchmarks,
  calibration,
  compare,
  controls,
  drift,
  hacking,
  objectives,
  overoptimisation,
  robustness,
  rules,
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
  rules.SECTION,
  benchmarks.SECTION,
)
