"""What a config.json may say: values that no model can have are refused before anything is made."""

import resource

import pytest

from rm_jax.pretrained.config import backbone_config, check_config, skipped_token
from tests.models import oracle


@pytest.mark.parametrize(
  "said",
  [
    *({"num_hidden_layers": n} for n in (3 * 10**8, 10**6, 0, -1, 2.0, "2", [2], True, {})),
    *({"vocab_size": n} for n in (2**40, 0, -5, "x")),
    *({"hidden_size": n} for n in (2**40, -32, 32.5)),
    *({"num_attention_heads": n} for n in (0, 10**9, 4.0)),
    *({"num_key_value_heads": n} for n in (0, 3, "2")),
    *({"head_dim": n} for n in (0, 7, 10**9)),
    *({"max_position_embeddings": n} for n in (10**15, 0, -5, None)),
    {"num_labels": 10**9},
    *({"rope_theta": n} for n in (0, -1.0, float("nan"), float("inf"), "x")),
    *({"rms_norm_eps": n} for n in (float("inf"), -1, float("nan"), [1e-5])),
    *({"attention_dropout": n} for n in (5.0, -0.1, "x", 1, 1.0)),
    {"initializer_range": float("nan")},
    *({"hidden_act": n} for n in (5, "os.system", ["silu"])),
    *({"rope_scaling": n} for n in ("x", [1], {"rope_type": "linear", "factor": 0})),
    {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
    {
      "rope_scaling": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
      }
    },
    *({"model_type": n} for n in (["llama"], {}, 5)),
    {"model_type": "mistral", "sliding_window": -5},
    {"model_type": "qwen2", "layer_types": ["x", "y"]},
    {"model_type": "qwen2", "layer_types": []},
    {"model_type": "qwen2", "layer_types": [5, 5]},
    *({"architectures": n} for n in ("x", 5, [5])),
    {"id2label": [1]},
    {"mlp_bias": "yes"},
    {"cls": 1},
    {"model_type": "bert", "num_attention_heads": 5},
    {"model_type": "bert", "type_vocab_size": 2**40},
    {"model_type": "bert", "hidden_dropout_prob": float("nan")},
    {"model_type": "bert", "attention_probs_dropout_prob": 1.0},
    {"model_type": "bert", "classifier_dropout": 1.0},
  ],
  ids=lambda said: str(said)[:40],
)
def test_a_config_that_no_model_can_have(said):
  good = oracle.hf_config("llama")
  backbone_config(good)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ValueError, match=r"^config\.json") as error:
    backbone_config({**good, **said})
  assert "\n" not in str(error.value)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_a_config_of_an_architecture_that_we_do_not_know_is_looked_at_for_sizes_alone():
  check_config({"model_type": "deberta", "type_vocab_size": 0, "hidden_act": 5})
  check_config({})
  with pytest.raises(
    ValueError, match=r"here: num_hidden_layers is 3e\+08; expected at most 10000"
  ):
    check_config({"model_type": "deberta", "num_hidden_layers": 3 * 10**8}, "here")


@pytest.mark.parametrize(("kind", "left_out"), [("llama", -1), ("qwen3", -1), ("gemma2", 0)])
def test_a_classifiers_skipped_token_is_transformers_own(kind, left_out):
  assert skipped_token({"model_type": kind}) == left_out
  for said, expected in ((None, -1), (7, 7), (-1, -1)):
    assert skipped_token({"model_type": kind, "pad_token_id": said}) == expected
