"""Small policies for tests: a three-layer Llama on bytes, and one on the world's words."""

import functools

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.base import get_config
from rm_jax.batch.tokenise import HH_TEMPLATE, Convention
from rm_jax.models.config import LikelihoodHead
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import make_mesh, place_whole
from rm_jax.policy.text import Policy
from rm_jax.pretrained.config import backbone_config
from rm_jax.reward.setup import TextModel
from rm_jax.train.optimizer import make_optimizer, make_schedule
from rm_jax.world import make_tokenizer
from tests.conftest import LLAMA, decoder_tokenizer


@functools.cache
def one_device():
  return make_mesh({"data": 1}, jax.devices()[:1])


def text_model(tokenizer, head, **keys):
  """A `TextModel` of a small Llama with random weights."""
  config = LLAMA | keys | {"tie_word_embeddings": True}
  network = Network(backbone_config(config), head)
  return TextModel(network, tokenizer, Convention(max_length=256), config, None)


@functools.cache
def byte_policy(layers=3):
  tokenizer = decoder_tokenizer()
  return Policy(text_model(tokenizer, LikelihoodHead(reference=False), num_hidden_layers=layers))


@functools.cache
def world_policy():
  tokenizer = make_tokenizer()
  tokenizer.chat_template = HH_TEMPLATE
  small = dict(vocab_size=640, num_hidden_layers=1)
  return Policy(text_model(tokenizer, LikelihoodHead(reference=False), **small))


def params_of(network, seed=0, noise=0.1):
  """Parameters on one device, path -> array, with noise so that none is 0 or 1."""
  flat = flatten_dict(jax.device_get(network.init(jax.random.key(seed))), sep="/")
  rng = np.random.default_rng(seed)
  flat = {p: x + noise * rng.normal(size=x.shape).astype(np.float32) for p, x in flat.items()}
  return place_whole(flat, one_device())


def nested(flat):
  return unflatten_dict(flat, sep="/")


def optimizer_of(**options):
  """AdamW at a constant rate; eps is large, so that rounding in small gradients stays small."""
  c = get_config().optimizer
  c.update(
    {
      "learning_rate": 0.05,
      "schedule": "constant",
      "warmup_steps": 0,
      "decay_steps": 100,
      "eps": 1e-2,
      "weight_decay": 0.01,
      **options,
    }
  )
  return make_optimizer(c, make_schedule(c))
