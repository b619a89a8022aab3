"""A reward model as the out-of-fold scorer: trained by the loop, scoring by `RewardModel`."""

import numpy as np
import pytest

from configs import hh_study
from configs.base import get_config
from rm_jax.curate import denoise, ledger, scorers
from rm_jax.curate.scorers import ConfigScorer
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.train.datasets import read_both
from rm_jax.train.fields import check_fields
from rm_jax.types import Example
from tests.train.runs import small_config, write_pairs


@pytest.mark.slow
def test_a_reward_model_finds_flips(llama_folder, tmp_path):
  book = ledger.read(write_pairs(tmp_path / "pairs.jsonl", 96, seed=5))
  flipped = [3, 40, 77]
  for i in flipped:
    book.flip(i, "planted", "")
  config = small_config(llama_folder, steps=24)
  scorer = ConfigScorer(config, tmp_path / "folds")
  margins = denoise.out_of_fold(book.examples, scorer, count=2)
  suspicion = denoise.suspect(book.examples, margins)
  # Better responses have more of one letter. Measured: 0.94. Chance plus 3 standard errors: 0.65.
  assert suspicion.report["accuracy"] > 0.8
  assert set(flipped) <= set(suspicion.ranked[:12].tolist())
  # The caller's config is unchanged.
  assert config.data.train != str(tmp_path / "folds/fold0/train.jsonl")
  sizes = [
    [len((tmp_path / f"folds/fold{k}/{name}.jsonl").read_text().splitlines()) for k in (0, 1)]
    for name in ("train", "heldout")
  ]
  assert sizes == [[48, 48], [48, 48]]
  # The same call resumes the finished runs and trains nothing.
  before = (tmp_path / "folds/fold1/run/metrics.jsonl").read_bytes()
  again = denoise.out_of_fold(book.examples, ConfigScorer(config, tmp_path / "folds"), count=2)
  assert (again == margins).all()
  assert (tmp_path / "folds/fold1/run/metrics.jsonl").read_bytes() == before
  # Other pairs in the same folder are not silently scored by the model trained on these.
  with pytest.raises(ValueError, match="training data were other ones"):
    denoise.out_of_fold(book.examples[:90], ConfigScorer(config, tmp_path / "folds"), count=2)
  assert np.isfinite(margins).all()


def test_a_fold_is_read_by_its_own_names(tmp_path, monkeypatch):
  """A config with sources, columns and validation data, as one that an experiment trains with."""
  configs = []

  def train(config, folder):
    configs.append(config)
    raise StopIteration  # what would come next is a model's

  monkeypatch.setattr(scorers.loop, "train", train)
  config = hh_study.get_config()
  config.data.columns = "chosen=best,rejected=worst"
  pairs = [Example(p, ("a", "b"), (1.0, 0.0)) for p in ("p", "q")]
  with pytest.raises(StopIteration):
    ConfigScorer(config, tmp_path)(pairs[:1], pairs[1:])
  check_fields(configs[0])
  examples, heldout, _ = read_both(configs[0], Report())
  assert [e.prompt for e in examples] == ["p"]
  assert [e.prompt for e in heldout] == ["q"]
  assert len(config.data.sources) == len(hh_study.PARTS)  # the caller's config is unchanged
  with config.unlocked():
    config.update_from_flattened_dict(hh_study.OBJECTIVES)
  with pytest.raises(InputError, match=r"--denoise_config.data.objectives='harmless.*expected ''"):
    ConfigScorer(config, tmp_path)


def test_a_wrong_config_is_refused_before_the_first_fold(tmp_path):
  config = get_config()
  config.model.attributes = ("help",)
  with pytest.raises(InputError, match=r"--denoise_config.model.attributes=\('help',\): expected"):
    ConfigScorer(config, tmp_path)
  config.model.attributes = ()
  config.optimizer.b1 = 1.5
  with pytest.raises(InputError, match=r"--config\.optimizer\.b1=1\.5: expected"):
    ConfigScorer(config, tmp_path)
