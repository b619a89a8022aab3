"""Runs with an implicit reward: DPO learns, resumes, is saved, and scores relative to its start."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from rm_jax import RewardModel
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from rm_jax.train import loop
from rm_jax.train.fields import check_fields
from rm_jax.types import Example
from tests.train.runs import run, small_config
from tests.train.test_kinds import outcome
from tests.train.test_text_penalty import language_model, refused, train_lines

ROWS = [
  {"prompt": "0.1 ab ", "response": "aab"},
  {"prompt": "0.1 ab ", "response": "bb"},
  {"prompt": "7 b ", "response": "abba"},
]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("base")
  return language_model(llama_folder, path, tied=request.param, own=not request.param)


@pytest.fixture(scope="module")
def untied(llama_folder, tmp_path_factory):
  return language_model(llama_folder, tmp_path_factory.mktemp("untied"), tied=False)


# For tests of what does not depend on where the language-model head is.
UNTIED = pytest.mark.parametrize("base", [False], indirect=True, ids=["untied"])


def config_of(folder, path, *, steps=20, **fields):
  config = small_config(folder, steps=steps)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(path)
  config.model.reward, config.model.beta = "implicit", 0.5
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def whole(llama_folder, base, tmp_path_factory):
  """A run of 20 steps: its workdir, its summary and the parameters that it ended with."""
  workdir, seen = tmp_path_factory.mktemp("whole"), {}

  class Spy(loop._Loop):
    def run_steps(self):
      out = super().run_steps()
      seen.update(jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen}))
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    summary = run(config_of(llama_folder, base), workdir, devices=1)
  return workdir, summary, seen


@pytest.mark.slow
def test_a_run_starts_at_log_2_and_learns(whole, base):
  workdir, summary, seen = whole
  lines = train_lines(workdir)
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # it is its own reference
  assert lines[0]["score_std"] < 1e-5
  assert lines[-1]["loss"] < 0.4
  assert summary["heldout"]["accuracy"] > 0.9
  assert not any(path.startswith("head/") for path in seen)
  tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
  assert ("lm_head/embedding" in seen) != tied


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_run(whole, llama_folder, base, tmp_path):
  for steps in (6, 20):
    run(config_of(llama_folder, base, steps=steps), tmp_path, devices=1)
  lines = read_lines(tmp_path / "metrics.jsonl")
  # The run that ended at step 6 was evaluated there.
  same = [line for line in lines if (line["step"], line["split"]) != (6, "heldout")]
  assert same == read_lines(whole[0] / "metrics.jsonl")


@pytest.mark.slow
def test_a_workdir_and_what_is_saved_of_it_score_alike(whole, base, tmp_path):
  workdir, _, seen = whole
  model = RewardModel.from_pretrained(workdir)
  for path, x in flatten_dict(model.params, sep="/").items():
    np.testing.assert_array_equal(x, seen[path])
  scores = model.score(ROWS)
  assert scores.std() > 0.1
  assert np.ptp([model.score([row])[0] for row in ROWS] - scores) < 1e-5
  record = json.loads((workdir / "model" / "rm_jax.json").read_text())
  assert record["implicit"]["beta"] == 0.5
  assert record["implicit"]["reference"]["name"] == str(base)
  model.save_pretrained(tmp_path)
  again = RewardModel.from_pretrained(tmp_path)
  np.testing.assert_array_equal(again.score(ROWS), scores)
  saved = json.loads((tmp_path / "rm_jax.json").read_text())
  assert saved["implicit"] == record["implicit"]
  config = json.loads((tmp_path / "config.json").read_text())
  assert config["architectures"] == ["LlamaForCausalLM"]
  own = "lm_head.weight" in load_file(tmp_path / "model.safetensors")
  assert own != config["tie_word_embeddings"]
  steps = model.score_steps([{"prompt": "0.1 ab ", "steps": ["aa", "bb"]}])
  assert steps[0].shape == (2,)
  pooled, same = model.pooled_and_scores(ROWS)
  assert pooled.shape == (3, 32)
  np.testing.assert_allclose(same[:, 0], scores, atol=1e-6)


@pytest.mark.slow
def test_scores_are_the_log_ratio_to_the_start(whole, base, tmp_path):
  """The reward of a model relative to 'none' is its own likelihood; two such give the ratio."""
  workdir, _, _ = whole
  model = RewardModel.from_pretrained(workdir)
  model.save_pretrained(tmp_path / "policy")
  shutil.copytree(tmp_path / "policy", tmp_path / "start")
  shutil.copy(next(base.glob("model.safetensors")), tmp_path / "start")
  alone = []
  for name in ("policy", "start"):
    path = tmp_path / name / "rm_jax.json"
    record = json.loads(path.read_text())
    record["implicit"]["reference"] = None
    path.write_text(json.dumps(record))
    alone.append(RewardModel.from_pretrained(tmp_path / name).score(ROWS))
  assert (alone[1] < -1).all()
  np.testing.assert_allclose(model.score(ROWS), alone[0] - alone[1], atol=2e-5)


@pytest.mark.slow
def test_transformers_reads_it_as_a_language_model(whole, tmp_path):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForCausalLM, AutoTokenizer

  model = RewardModel.from_pretrained(whole[0])
  model.save_pretrained(tmp_path)
  policy = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
  start = AutoModelForCausalLM.from_pretrained(model.reference.record.name, dtype=torch.float64)
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  encoder = model.text_model.text_encoder()
  for row, score in zip(ROWS, model.score(ROWS), strict=True):
    (tokens,) = encoder.sequences([(row["prompt"], row["response"])])
    ids = torch.tensor([[*tokenizer(row["prompt"] + row["response"]).input_ids, 2]])
    assert ids[0].tolist() == tokens.ids.tolist()
    with torch.no_grad():
      values = [
        m(ids)
        .logits[0, :-1]
        .log_softmax(-1)
        .gather(-1, ids[0, 1:, None])[tokens.prompt - 1 :]
        .sum()
        for m in (policy, start.eval())
      ]
    assert score == pytest.approx(0.5 * float(values[0] - values[1]), abs=2e-5)


@pytest.mark.slow
def test_another_reference_than_the_saved_one_is_refused(whole, llama_folder, base, tmp_path):
  model = RewardModel.from_pretrained(whole[0])
  model.save_pretrained(tmp_path / "saved")
  other = shutil.copytree(base, tmp_path / "other")
  shutil.copy(tmp_path / "saved" / "model.safetensors", other)
  path = tmp_path / "saved" / "rm_jax.json"
  record = json.loads(path.read_text())
  record["implicit"]["reference"]["name"] = str(other)
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"other: its weights have the fingerprint .* was trained"):
    RewardModel.from_pretrained(tmp_path / "saved")
  record["implicit"]["reference"]["name"] = str(tmp_path / "gone")
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"reference is .*/gone, which .*reference=FOLDE"):
    RewardModel.from_pretrained(tmp_path / "saved")
  # Where it is now may be said, and has to be that one.
  moved = RewardModel.from_pretrained(tmp_path / "saved", reference=base)
  np.testing.assert_array_equal(moved.score(ROWS), model.score(ROWS))
  with pytest.raises(ValueError, match=r"other: its weights have the fingerprint"):
    RewardModel.from_pretrained(tmp_path / "saved", reference=other)
  # Its own reference is not written over.
  with pytest.raises(ValueError, match="is the language model that this model's reward is"):
    model.save_pretrained(base)
  del record["implicit"]["beta"]
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"implicit is .*; expected beta"):
    RewardModel.from_pretrained(tmp_path / "saved", reference=base)
  # A run that goes on does not do so relative to another start.
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  path = workdir / "model" / "rm_jax.json"
  record = json.loads(path.read_text())
  record["implicit"]["reference"]["fingerprint"] = "0" * 16
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"its reward is relative to the reference .*0000"):
    run(config_of(llama_folder, base), workdir, devices=1)


@pytest.mark.slow
@UNTIED
def test_adapters_are_relative_to_their_base(llama_folder, base, tmp_path):
  fields = {"model.lora.rank": 4, "model.lora.base_dtype": "bfloat16"}
  summary = run(config_of(llama_folder, base, **fields), tmp_path, devices=1)
  lines = train_lines(tmp_path)
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
  assert lines[-1]["loss"] < 0.66
  assert summary["train"]["trained_parameters"] < 20_000
  model = RewardModel.from_pretrained(tmp_path)
  record = json.loads((tmp_path / "model" / "rm_jax.json").read_text())
  assert record["implicit"]["reference"]["dtype"] == "bfloat16"
  scores = model.score(ROWS)
  assert 0.01 < np.abs(scores).max() < 30
  model.save_pretrained(tmp_path / "saved")
  np.testing.assert_allclose(
    RewardModel.from_pretrained(tmp_path / "saved").score(ROWS), scores, atol=1e-5
  )


@pytest.mark.slow
@UNTIED
def test_a_folder_as_reference_is_the_start_where_it_is_the_same(
  whole, llama_folder, base, tmp_path
):
  run(config_of(llama_folder, base, **{"model.reference": str(base)}), tmp_path, devices=1)
  got, want = ([x["loss"] for x in train_lines(d)] for d in (tmp_path, whole[0]))
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert (
    json.loads((tmp_path / "model" / "rm_jax.json").read_text())["implicit"]
    == (json.loads((whole[0] / "model" / "rm_jax.json").read_text())["implicit"])
  )


@pytest.mark.slow
def test_frozen_layers_kept_or_not_give_the_same_run(llama_folder, untied, tmp_path):
  lines = {}
  for keep in (True, False):
    fields = {"model.frozen_layers": 2, "model.keep_features": keep}
    run(config_of(llama_folder, untied, steps=6, **fields), tmp_path / str(keep), devices=1)
    lines[keep] = [x["loss"] for x in train_lines(tmp_path / str(keep))]
  np.testing.assert_allclose(lines[True], lines[False], atol=2e-5)
  assert lines[True][-1] < lines[True][0]
  RewardModel.from_pretrained(tmp_path / "True").score(ROWS)


@pytest.mark.slow
@UNTIED
def test_eight_devices_give_one_devices_run(whole, llama_folder, base, tmp_path):
  config = config_of(llama_folder, base)
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  run(config, tmp_path)
  got, want = ([x["loss"] for x in train_lines(d)] for d in (tmp_path, whole[0]))
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
  assert (
    json.loads((tmp_path / "model" / "rm_jax.json").read_text())["implicit"]
    == json.loads((whole[0] / "model" / "rm_jax.json").read_text())["implicit"]
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [
    {"loss.pair": "ipo(tau=0.5)"},
    {"loss.pair": "plackett_luce"},
    {"loss.pair": "hinge", "model.reference": "none", "loss.text_sft": 0.1},  # SLiC-HF
    {  # SimPO
      "loss.pair": "logistic(margin=0.5)",
      "model.reference": "none",
      "model.normalised": True,
      "model.beta": 2.0,
    },
  ],
  ids=lambda fields: fields["loss.pair"],
)
def test_losses_of_each_form_read_these_scores(fields, llama_folder, untied, tmp_path):
  summary = run(config_of(llama_folder, untied, steps=12, **fields), tmp_path, devices=1)
  assert summary["heldout"]["accuracy"] > 0.7
  lines = train_lines(tmp_path)
  assert lines[-1]["loss"] < lines[0]["loss"]
  assert RewardModel.from_pretrained(tmp_path).score(ROWS).shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kto", "bce"])
def test_unpaired_outcomes_are_learned_from(loss, llama_folder, untied, tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / "outcomes.jsonl"
  path.write_text("".join(json.dumps(outcome(rng, i)) + "\n" for i in range(48)))
  fields = {"loss.outcome": loss, "data.train": str(path), "data.heldout": "0.2"}
  run(config_of(llama_folder, untied, steps=16, **fields), tmp_path / "run", devices=1)
  lines = train_lines(tmp_path / "run")
  assert lines[0]["loss"] == pytest.approx({"kto": 0.5, "bce": np.log(2)}[loss], abs=1e-6)
  assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


@pytest.mark.slow
def test_ktos_reference_point_is_the_same_however_a_step_is_laid_out(
  llama_folder, untied, tmp_path
):
  rng = np.random.default_rng(0)
  path = tmp_path / "outcomes.jsonl"
  path.write_text("".join(json.dumps(outcome(rng, i)) + "\n" for i in range(48)))
  fields = {"loss.outcome": "kto(baseline='batch')", "data.train": str(path), "data.heldout": "0.2"}
  fields["model.frozen_layers"] = 1
  layouts = {
    "one micro-batch": (1, {}),
    "rows of one response on 8 devices": (
      8,
      {"data.pack": False, "data.cells": 1, "data.share": False, "model.keep_features": False},
    ),
  }
  lines = {}
  for name, (devices, more) in layouts.items():
    config = config_of(llama_folder, untied, steps=4, **fields | more)
    run(config, tmp_path / name, devices=devices)
    lines[name] = train_lines(tmp_path / name)
  first, other = lines.values()
  assert first[0]["loss"] == pytest.approx(0.5, abs=1e-6)  # it is its own reference, and z0 is 0
  for a, b in zip(first, other, strict=True):
    for what in ("loss", "gradient_norm", "accuracy", "score_mean"):
      assert b[what] == pytest.approx(a[what], rel=1e-4, abs=1e-6), what


@pytest.mark.parametrize("kind", ["pair", "outcome"])
def test_a_head_is_not_trained_by_a_loss_without_a_bound(kind, llama_folder):
  config = small_config(llama_folder, steps=1)
  config.loss[kind] = "likelihood"
  with pytest.raises(
    InputError, match=rf"loss.{kind}='likelihood' has no lower bound.*reward=implicit"
  ):
    check_fields(config)


@pytest.mark.parametrize("more", [{"model.reward": "head"}, {"model.reference": "none"}])
def test_a_reference_point_without_a_reference_is_refused(more, llama_folder, untied):
  config = config_of(llama_folder, untied, **{"loss.outcome": "kto(baseline='batch')"} | more)
  with pytest.raises(InputError, match=r"loss.outcome=.*expected 'implicit' and a reference"):
    check_fields(config)


@pytest.mark.slow
def test_a_response_without_a_token_of_its_own_is_dropped_and_counted(
  llama_folder, untied, tmp_path
):
  config = config_of(
    llama_folder, untied, steps=1, **{"model.eos": "none", "model.reference": "none"}
  )
  report, model = Report(), build_model(config)
  examples = [Example("ab", ("a", ""), (1.0, 0.0)), Example("ab", ("a", "b"), (1.0, 0.0))]
  groups, kept = model.tokenise(examples, report)
  assert (len(groups), kept) == (1, examples[1:])
  assert dict(report.dropped) == {"no_likelihood": 1}
  run(config, tmp_path, devices=1)
  model = RewardModel.from_pretrained(tmp_path)
  with pytest.raises(DataError, match="row 1: no_likelihood"):
    model.score([ROWS[0], {"prompt": "ab", "response": ""}])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.layers": 2}, r"'implicit' and model\.layers 2: the language-model head was trained"),
    ({"model.members": 2}, r"'implicit' and model\.members 2, which is about heads"),
    ({"model.attributes": ("a", "b")}, r"'implicit' and model\.attributes \('a', 'b'\), which is"),
    ({"model.pooling": "mean"}, r"'implicit' and model\.pooling 'mean': a likelihood is summed"),
    ({"model.beta": 0.0}, r"model\.beta=0\.0: expected a finite number above 0"),
    ({"model.beta": -0.1}, r"model\.beta=-0\.1: expected a finite number above 0"),
    ({"model.reference": ""}, r"model\.reference='': expected 'start', 'none', or a language"),
    ({"model.reference": "/nowhere"}, r"model\.reference is /nowhere, which cannot be read"),
    ({"model.reward": "both"}, r"model\.reward='both': expected one of 'head', 'implicit'"),
    ({"optimizer.head_rate": 2.0}, r"optimizer\.head_rate is 2\.0 and model\.reward 'implicit'"),
    ({"loss.text_dpo": 0.1}, r"loss\.text_dpo is 0\.1, and model\.reward is 'implicit', whose"),
  ],
  ids=lambda x: str(x)[:30],
)
def test_what_makes_no_sense_is_refused_before_anything_compiles(
  fields, message, llama_folder, untied, tmp_path
):
  refused(config_of(llama_folder, untied, steps=1, **fields), tmp_path, message)


def test_checkpoints_without_a_language_model_are_refused(
  llama_folder, bert_folder, untied, tmp_path
):
  config = small_config(bert_folder, steps=1)
  config.model.reward = "implicit"
  refused(config, tmp_path, r"'implicit', and a model of type 'bert' is an encoder, which predicts")
  config = small_config(llama_folder, steps=1)
  config.model.reward = "implicit"
  refused(config, tmp_path, r"model\.reference 'start', and the weights are random")
  headless = language_model(llama_folder, tmp_path / "headless", tied=False, own=False)
  refused(config_of(llama_folder, headless), tmp_path, r"headless has no lm_head\.weight, though")
  said = {"model.reference": str(headless)}
  refused(config_of(llama_folder, untied, **said), tmp_path, r"headless has no lm_head\.weight")
  said = {"model.reference": str(bert_folder)}
  refused(config_of(llama_folder, untied, **said), tmp_path, r"expected a language model|no such")
  (tmp_path / "workdir" / "model").mkdir(parents=True)
  shutil.copy(untied / "config.json", tmp_path / "workdir" / "model")
  said = {"model.reference": str(tmp_path / "workdir")}
  refused(
    config_of(llama_folder, untied, **said), tmp_path, r"workdir, the workdir of a run; expected"
  )
  classifier = shutil.copytree(untied, tmp_path / "classifier")
  said = json.loads((classifier / "config.json").read_text())
  said["architectures"] = ["LlamaForSequenceClassification"]
  (classifier / "config.json").write_text(json.dumps(said))
  refused(
    config_of(llama_folder, classifier), tmp_path, r"classifier is a classifier, which has a head"
  )
  said = {"model.reference": str(classifier)}
  refused(
    config_of(llama_folder, untied, **said), tmp_path, r"SequenceClassification.*expected a lang"
  )


def test_a_reference_of_other_ids_is_refused(llama_folder, untied, tmp_path):
  from tests.conftest import decoder_tokenizer

  other = shutil.copytree(untied, tmp_path / "other")
  decoder_tokenizer([("a", "b")]).save_pretrained(other)
  config = config_of(llama_folder, other, **{"model.reference": str(untied)})
  refused(config, tmp_path, r"whose tokenizer has other ids than the model's for 1 of 260 tokens")


def test_a_reference_that_reads_shorter_texts_is_refused(llama_folder, untied, tmp_path):
  other = shutil.copytree(untied, tmp_path / "other")
  said = json.loads((other / "config.json").read_text()) | {"max_position_embeddings": 16}
  (other / "config.json").write_text(json.dumps(said))
  config = config_of(llama_folder, untied, **{"model.reference": str(other)})
  refused(
    config, tmp_path, r"which reads 16 tokens, and the model's texts have up to 512; expected"
  )


@pytest.mark.slow
def test_random_weights_may_be_fine_tuned_without_a_reference(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  config.model.reward, config.model.reference = "implicit", "none"
  config.model.beta, config.model.normalised = 1.0, True
  config.loss.pair = "likelihood"
  run(config, tmp_path, devices=1)
  losses = [x["loss"] for x in train_lines(tmp_path)]
  assert losses[0] == pytest.approx(np.log(300), abs=0.1)  # of all tokens alike
  assert losses[-1] < losses[0] - 1.5
  (score,) = RewardModel.from_pretrained(tmp_path).score([{"prompt": "1.0 ab ", "response": "aab"}])
  assert -score < np.log(300) - 1.5  # by the token
  assert build_model(config).record()["implicit"]["reference"] is None
