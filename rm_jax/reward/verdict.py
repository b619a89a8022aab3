"""A head that judges before its first step: the language model's own verdict.

    r(x, y) = logit(Yes | x, y, question) − logit(No | x, y, question)

Behind the response stands a judge's question (`Convention.question`), and the new head is the
difference of two rows of the language-model head, those of the words that answer it. So a reward
model begins as the language model's log-odds that the response is good (Zhang et al. 2024,
"Generative Verifiers: Reward Modeling as Next-Token Prediction"; RLHFlow's process reward models
are read in this way), and training goes on from there. A cap on logits (Gemma 2) is left out.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, HeadConfig, LikelihoodHead
from rm_jax.parallel.mesh import place_whole, replicated
from rm_jax.pretrained.config import backbone_config, is_classifier, tied_head
from rm_jax.pretrained.hf import LM_HEAD, read_tensor
from rm_jax.pretrained.source import Source
from rm_jax.reward.architecture import check_language_head

WORDS = ("Yes", "No")
KERNEL = "head/out/kernel"


def question_of(question: str, words: Sequence[str]) -> str:
  """The question that is asked, by default one that the two words answer."""
  return question or (
    "Was the answer above a good one: helpful, correct and harmless? Reply with one word, "
    f"{words[0]} or {words[1]}."
  )


def check(
  source: Source | None, head: HeadConfig | LikelihoodHead, words: Sequence[str], said: str
) -> None:
  """Checks that a head can be made of a checkpoint's language-model head.

  Args:
    source: the checkpoint; None: random weights.
    head: the network's.
    words: that mean a good and a bad response.
    said: what asks for it, for the message.

  Raises:
    InputError: the checkpoint is an encoder's or a classifier's or has no language-model head; or
      the head has several outputs; or there are not two words.
  """
  mend = "expected another model, or a head that begins at random"
  whole = not isinstance(words, str) and len(words) == 2
  if not whole or not all(isinstance(w, str) and w.strip() for w in words):
    raise InputError(
      f"{said}, by the words {tuple(words)}; expected two: of a good response, a bad"
    )
  if source is None:
    raise InputError(f"{said}, and the weights are random, which have no verdict; {mend}")
  backbone = backbone_config(source.config)
  if not isinstance(backbone, DecoderConfig):
    raise InputError(
      f"{said}, and a model of type {source.config['model_type']!r} is an encoder, which predicts "
      f"no next token; {mend}"
    )
  if is_classifier(source.config):
    raise InputError(f"{said}, and {source.path} has a head of its own already; {mend}")
  if isinstance(head, LikelihoodHead):
    raise InputError(
      f"{said}, and the reward is implicit (model.reward, or a saved model's record), which has no "
      "head; expected model.reward='head', or another model"
    )
  if head.outputs != 1:
    raise InputError(f"{said}, and the head has {head.outputs} outputs; expected one, the reward")
  if not tied_head(source.config):
    check_language_head(source, backbone, said, mend)


def head_params(
  source: Source, params: Mapping[str, jax.Array], ids: Sequence[int], mesh: Mesh
) -> dict[str, jax.Array]:
  """The head of a verdict.

  Args:
    source: the checkpoint.
    params: path -> parameter, of its backbone.
    ids: tokens of the words (`TextEncoder.verdict_ids`).
    mesh: the devices.

  Returns:
    {KERNEL: float32 [D, 1]}, whole on every device.

  Raises:
    WeightsError: as `read_tensor`.
  """
  good, bad = ids

  def difference(head_VD):
    return (head_VD[good].astype(np.float32) - head_VD[bad].astype(np.float32))[:, None]

  if tied_head(source.config):
    # On the devices: the embedding may be sharded over those of several processes.
    embed_VD = params["backbone/embed/embedding"]
    kernel = jax.jit(difference, out_shardings=replicated(mesh))(embed_VD)
    return {KERNEL: kernel}
  head_VD = read_tensor(source.tensors(), LM_HEAD, str(source.path))
  return place_whole({KERNEL: difference(head_VD)}, mesh)
