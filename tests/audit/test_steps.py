"""The audit of solutions that are judged step by step, and its page."""

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.scorer import Scorer
from rm_jax.types import Example
from tests.audit.test_scorer import make


def solutions(count=40):
  rng = np.random.default_rng(0)
  for i in range(count):
    steps = tuple("".join(rng.choice(list("ab"), 4)) for _ in range(rng.integers(2, 5)))
    wrong = int(rng.integers(len(steps) + 1))
    labels = tuple(float(k < wrong) for k in range(len(steps)))
    text = "".join(steps)
    yield Example(
      f"{i} ", (text,), labels, "step", steps=(steps,), conversation=f"c{i}", source="s"
    )


def test_steps_are_scored_calibrated_and_shown(llama_folder, tmp_path):
  model, examples = make(llama_folder), list(solutions())
  found = audit(Scorer(model, folder=None), examples)
  total = sum(len(e.labels) for e in examples)
  assert found["agreement"]["kind"] == "step"
  assert found["agreement"]["n"] == total
  steps = found["calibration"]["steps"]
  assert steps["n"] + steps["fitted_on"] == total
  # An untrained model's log-odds are near 0, and a bias moves them to the mean of the labels.
  assert steps["after"]["brier"]["value"] <= steps["before"]["brier"]["value"] + 0.02
  scores = model.score_steps([{"prompt": "0 ", "completions": list(examples[0].steps[0])}])
  label = np.asarray(examples[0].labels)
  assert len(scores[0]) == len(label)
  assert page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found}) == {}
  text = (tmp_path / "report.html").read_text()
  assert "calibration_steps" not in text
  assert "reliability diagram of steps" in text
  assert 'data-path="calibration/steps/platt/slope/value"' in text


def test_an_encoder_reads_no_steps(bert_folder):
  with pytest.raises(ValueError, match="steps"):
    audit(Scorer(make(bert_folder), folder=None), list(solutions(4)))
