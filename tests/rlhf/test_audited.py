"""The audit of a reward model shows a chain's policy, and refuses one of another reward model."""

import json

import pytest

from rm_jax.rlhf.chain import run
from tests.processes import command
from tests.rlhf.small import own_config, own_folder
from tests.train.runs import write_pairs

pytestmark = pytest.mark.slow  # processes, and a chain


def test_the_command_has_a_chains_policy_on_its_page(tmp_path):
  own = own_folder(tmp_path)
  config = own_config(own, "best_of_n", reward__gold=str(own / "gold"))
  summary = run(config, tmp_path / "chain")
  flags = (
    f"--data={write_pairs(tmp_path / 'held.jsonl', 12, seed=3)}",
    f"--output={tmp_path / 'page'}",
    f"--policies={tmp_path / 'chain'}",
    "--edits=4",
    "--cache=none",
  )
  code, out, err = command("audit", f"--model={own / 'rm'}", *flags).finish()
  assert code == 0, err
  report = json.loads((tmp_path / "page" / "report.json").read_text())["policies"]
  (found,) = report["runs"]
  assert found["method"] == "best_of_n"
  assert found["gold"] == json.loads(json.dumps(summary["gold"]))
  assert f"policies: {report['says'][0]}" in out
  assert "policies" in json.loads((tmp_path / "page" / "report.json").read_text())["pictures"]
  code, out, err = command("audit", f"--model={own / 'gold'}", *flags).finish()
  assert code == 1
  assert "expected --model to be the reward model that it was optimised against" in err
  assert len(err.strip().splitlines()[-1]) > 0
