"""Two versions of transformers, without rm_jax, compute our scores from an export."""

import json
import os

import numpy as np
import pytest

from rm_jax import RewardModel, api
from rm_jax.batch.layout import standing
from rm_jax.reward import score
from tests.clients.exports import MODELS, client, conversations, made, one_device, python_of

pytestmark = pytest.mark.slow

INSTALL = "python -m venv tf451 && tf451/bin/pip install torch 'transformers==4.51.3'"
# Texts that each model scores; RM_JAX_TEST_TEXTS=300 for the figures of docs/exports.md.
TEXTS = int(os.environ.get("RM_JAX_TEST_TEXTS", "12"))
CLIENTS = {"5": (None, ""), "4.51": ("RM_JAX_TEST_TF451", INSTALL)}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
  """name -> (the export's folder; the texts as a client gives them; our scores of each)."""
  out = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(api, "make_mesh", lambda sizes: one_device())
    # One shape and not three: a model, and what is read of its export, compile one program each.
    patch.setattr(score, "standing", lambda *given: (standing(*given)[-1][1:2],))
    for name in MODELS:
      folder = tmp_path_factory.mktemp("export")
      try:
        model = made(name, folder / "made")
      except pytest.skip.Exception:
        continue
      model.save_pretrained(folder / "saved")
      out[name] = str(folder / "saved"), *asked_and_scored(model, folder / "saved")
  return out


def asked_and_scored(model, saved):
  """(the texts of each kind as a client gives them, our scores of them) of a model and its export.

  A kind is 'messages', 'strings', or 'pairs' for an encoder.
  """
  talks = conversations(TEXTS)
  messages = [{"prompt": turns, "response": answer} for turns, answer in talks]
  strings = [{"prompt": turns[-1]["content"], "response": answer} for turns, answer in talks]
  asked, rows = {}, list(strings)
  if model.text_model.convention.encoder:
    asked["pairs"] = [[row["prompt"], row["response"]] for row in strings]
  else:
    asked["strings"] = [row["prompt"] + row["response"] for row in strings]
  if model.text_model.tokenizer.chat_template:
    asked["messages"] = [
      [*turns, {"role": "assistant", "content": answer}] for turns, answer in talks
    ]
    rows += messages
  scores = model.score(rows)
  ours = dict(zip(asked, np.split(scores, len(asked)), strict=True))
  encoder = model.text_model.text_encoder()
  pairs = [(row["prompt"], row["response"]) for row in strings]
  assert not any(one.cut for one in encoder.sequences(pairs))
  np.testing.assert_array_equal(RewardModel.from_pretrained(saved).score(rows), scores)
  return asked, ours


@pytest.fixture(scope="module", params=CLIENTS)
def scores(request, exports):
  """folder -> what the client read there."""
  python = python_of(*CLIENTS[request.param])
  asked = {folder: texts for folder, texts, _ in exports.values()}
  out = client(python, "read.py", stdin=json.dumps(asked))
  assert out["transformers"].startswith(request.param)
  return out


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_our_scores(exports, scores, name):
  if name not in exports:
    pytest.skip(f"the tokenizer of {name} is not here")
  folder, _, ours = exports[name]
  for kind, expected in ours.items():
    assert expected.std() > 0.05
    if name == "BERT" and kind == "messages":
      # A pair's second half has token types of its own, which no template can render.
      assert "reads a pair, which a chat template cannot render" in scores[folder][kind]["refused"]
      continue
    for how in ("alone", "padded"):
      found = scores[folder][kind][how]
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=f"{kind}, {how}")
