"""Sampling with a cache gives what sampling without one gives, token for token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig, LikelihoodHead
from rm_jax.models.lora import Lora
from rm_jax.models.network import Network
from rm_jax.policy.generate import Sampling, draw, generate, nucleus
from rm_jax.pretrained.config import backbone_config
from rm_jax.types import Batch
from tests.models.families import LLAMA3, SMALL
from tests.models.layouts import WINDOW
from tests.models.oracle import random_params

P, S, M, T = 3, 2, 9, 12
LENGTH = np.array([12, 1, 7], np.int32)  # longer and shorter than a sliding window
R = np.random.default_rng(0)
PROMPTS = np.where(np.arange(T) < LENGTH[:, None], R.integers(3, 97, (P, T)), 96).astype(np.int32)
END = tuple(range(3, 12))  # about a tenth of the tokens, so that samples end at different places


def network_of(arch, *, tied=True, options=None, **keys):
  config = backbone_config(SMALL[arch].keys | keys | {"model_type": arch})
  return Network(config, LikelihoodHead(reference=False, tied=tied), **(options or {}))


NETWORKS = {
  "llama, GQA, llama3 RoPE": network_of("llama", rope_parameters=LLAMA3, head_dim=12),
  "llama, untied, a frozen layer": network_of("llama", tied=False, options={"frozen": 1}),
  "gemma2": network_of("gemma2"),
  "qwen3, windows": network_of(
    "qwen3",
    attention_bias=True,
    use_sliding_window=True,
    sliding_window=WINDOW,
    max_window_layers=2,
  ),
}
MORE = {
  "mistral, window": network_of("mistral", sliding_window=WINDOW, head_dim=12),
  "qwen2": network_of("qwen2"),
  "llama, adapters": network_of("llama", options={"lora": Lora(rank=2)}),
}


@functools.cache
def params_of(network):
  flat = flatten_dict(random_params(network), sep="/")
  # Logits of the order of one, so that many tokens are probable.
  scale = {"embedding": 0.25, "lora_a": 0.2, "lora_b": 0.2}
  flat = {p: x * scale.get(p.rsplit("/")[-1], 1) for p, x in flat.items()}
  return unflatten_dict(flat, sep="/")


@functools.cache
def logits_of(network):
  """(tokens [N, T + M], length [N]) -> logits after each row's last token, by the whole network."""

  @jax.jit
  def run(tokens, length):
    column = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    one = jnp.zeros((len(tokens), 1, 1), jnp.int32)
    batch = Batch(
      tokens=tokens,
      group=(column < length[:, None]).astype(jnp.int32),
      branch=jnp.zeros_like(tokens),
      position=column,
      marks=one,
      where=one > 0,
      labels=one,
      weight=one[..., 0],
    )
    h = network.hidden(params_of(network), batch)
    last = jnp.take_along_axis(h, (length - 1)[:, None, None], axis=1)[:, 0]
    head = network.bind(params_of(network)).language_head
    logits = jnp.matmul(last, head.T, precision="highest")
    cap = network.backbone.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  return run


def without_cache(network, keys, sampling, samples=S):
  """(tokens, logp) of each prompt and sample, [] after the end; everything is computed anew."""
  tokens = np.zeros((P * samples, T + M), np.int32)
  tokens[:, :T] = np.repeat(PROMPTS, samples, axis=0)
  length = np.repeat(LENGTH, samples)
  out = [([], []) for _ in range(P * samples)]
  for step in range(sampling.tokens):
    logits = logits_of(network)(tokens, length)
    logp = np.asarray(jax.nn.log_softmax(logits))
    for n, (mine, mine_logp) in enumerate(out):
      if mine and mine[-1] in sampling.end:
        continue
      key = jax.random.fold_in(jax.random.fold_in(keys[n // samples], n % samples), step)
      token = int(draw(key[None], logits[n][None], sampling)[0])
      mine.append(token)
      mine_logp.append(logp[n, token])
      tokens[n, length[n]] = token
      length[n] += 1
  return out


def run(network, sampling, keys, *, prompts=PROMPTS, length=LENGTH, samples=S):
  params = params_of(network)
  return jax.device_get(
    generate(network, params, prompts, length, keys, samples=samples, sampling=sampling)
  )


KEYS = jax.random.split(jax.random.key(7), P)


def assert_same(got, expected):
  flat = [x.reshape(-1, *x.shape[2:]) for x in (got.tokens, got.logp, got.length, got.ended)]
  for tokens, logp, length, ended, (own, own_logp) in zip(*flat, expected, strict=True):
    assert tokens[:length].tolist() == own
    np.testing.assert_allclose(logp[:length], own_logp, rtol=0, atol=1e-5)
    assert ended == (own[-1] in END)
    assert not tokens[length:].any()
    assert not logp[length:].any()


def check(network):
  warm = Sampling(M, END, temperature=1.3, top_p=0.9)
  got = run(network, warm, KEYS)
  assert_same(got, without_cache(network, KEYS, warm))
  assert got.ended.any()  # the case is worth something only if some end and some do not
  assert not got.ended.all()


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_are_those_of_the_whole_network_run_at_every_token(name):
  check(NETWORKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_samples_of_other_networks_too(name):
  check(MORE[name])


def test_greedy_samples_are_the_most_probable_tokens():
  network, greedy = NETWORKS["gemma2"], Sampling(M, END, temperature=0)
  got = run(network, greedy, KEYS)
  assert_same(got, without_cache(network, KEYS, greedy))
  assert (got.tokens[:, 0] == got.tokens[:, 1]).all()  # whatever the key


LLAMA = NETWORKS["llama, untied, a frozen layer"]
PLAIN = Sampling(M, END)


def test_the_same_key_gives_the_same_samples_and_another_gives_others():
  one, two = run(LLAMA, PLAIN, KEYS), run(LLAMA, PLAIN, KEYS)
  jax.tree.map(np.testing.assert_array_equal, one, two)
  other = run(LLAMA, PLAIN, jax.random.split(jax.random.key(8), P))
  assert (one.tokens != other.tokens).any()
  assert (one.tokens[:, 0] != one.tokens[:, 1]).any()


def test_samples_do_not_depend_on_other_prompts_padding_or_their_number():
  whole = run(LLAMA, PLAIN, KEYS)
  alone = run(LLAMA, PLAIN, KEYS[2:], prompts=PROMPTS[2:, :7], length=LENGTH[2:], samples=S + 1)
  np.testing.assert_array_equal(alone.tokens[0, :S], whole.tokens[2])
  np.testing.assert_allclose(alone.logp[0, :S], whole.logp[2], atol=1e-5)


def test_an_empty_continuation_is_its_end_token():
  first = run(LLAMA, Sampling(M, END, temperature=0), KEYS).tokens[:, 0, 0]
  got = run(LLAMA, Sampling(M, tuple(map(int, first)), temperature=0), KEYS)
  assert (got.length == 1).all()
  assert got.ended.all()
  assert (got.tokens[:, :, 0] == first[:, None]).all()
  assert not got.tokens[:, :, 1:].any()


def test_a_single_token_needs_no_step_with_the_cache():
  got = run(LLAMA, dataclasses.replace(PLAIN, tokens=1), KEYS)
  np.testing.assert_array_equal(got.tokens[..., 0], run(LLAMA, PLAIN, KEYS).tokens[..., 0])
  assert (got.length == 1).all()


def test_ids_without_a_token_are_never_drawn():
  few = Sampling(M, (3,), temperature=5.0, vocab=9)
  assert run(LLAMA, few, KEYS).tokens.max() < 9
  assert run(LLAMA, dataclasses.replace(few, vocab=0), KEYS).tokens.max() >= 9


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
  p = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.05, 0.9, 0.03, 0.02]])
  for top_p, expected in {
    0.35: [[0, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]],
    0.5: [[0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]],
    0.85: [[0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]],
    0.999: [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
  }.items():
    np.testing.assert_array_equal(nucleus(jnp.log(p), top_p), np.array(expected, bool))


def test_frequencies_are_those_of_the_tempered_nucleus():
  p = np.array([0.4, 0.3, 0.2, 0.1])
  keys = jax.random.split(jax.random.key(0), 20_000)
  logits = jnp.broadcast_to(jnp.log(p)[None], (len(keys), 4))
  drawn = np.asarray(draw(keys, logits, Sampling(1, (0,), temperature=2.0, top_p=0.75)))
  expected = np.sqrt(p[:3]) / np.sqrt(p[:3]).sum()  # 0.75 is reached by three of sqrt(p) / Σ
  frequency = np.bincount(drawn, minlength=4) / len(keys)
  np.testing.assert_allclose(frequency, [*expected, 0], atol=0.02)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"tokens": 0}, "0 tokens"),
    ({"end": ()}, "no token ends"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
  ],
)
def test_sampling_that_cannot_be_is_refused(options, said):
  with pytest.raises(InputError, match=said):
    Sampling(**{"tokens": 4, "end": (2,)} | options)


def test_a_network_without_a_language_model_head_is_refused():
  network = dataclasses.replace(LLAMA, head=HeadConfig())
  with pytest.raises(ValueError, match="LikelihoodHead"):
    generate(network, {}, PROMPTS, LENGTH, KEYS, samples=1, sampling=PLAIN)
