"""Topics of prompts, found without labels: clusters of prompts, each named by its typical words.

Dhillon and Modha (2001), Concept decompositions for large sparse text data using clustering
(k-means on the unit sphere).
"""

import array
import collections
import math
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from rm_jax.data.dialogue import texts_of
from rm_jax.metrics.surface import words
from rm_jax.types import Text

_WORDS = 2000  # largest size of the vocabulary; the words with the most prompts are taken
_STARTS = 4  # random initialisations of k-means, of which the best result is taken
_ROUNDS = 30  # largest number of iterations of k-means from one initialisation


def topics(prompts: Sequence[Text], k: int = 8, *, seed: int = 0) -> list[str]:
  """The topic of each prompt: the three words in which its cluster most exceeds all prompts' mean.

  Prompts are vectors of tf-idf weights, clustered by k-means with cosine similarity.

  Args:
    prompts: N prompts; of messages the user's are read, or all if none is the user's.
    k: largest number of clusters. A prompt without a word of the vocabulary is in no cluster: its
      topic is 'other'.
    seed: of the initialisation; the same prompts and seed give the same topics.

  Returns:
    N names, such as 'bank, money, account'.

  Raises:
    ValueError: k is below 1.
  """
  if k < 1:
    raise ValueError(f"k is {k}; expected at least 1 topic")
  counted = [collections.Counter(_content_words(prompt)) for prompt in prompts]
  seen = collections.Counter(word for one in counted for word in one)
  most = max(2, len(prompts) // 5)  # a word in more than a fifth of the prompts tells no topic
  vocabulary = [w for w, n in seen.most_common() if 2 <= n <= most][:_WORDS]
  place = {word: i for i, word in enumerate(vocabulary)}
  rarity = [math.log(len(prompts) / seen[word]) for word in vocabulary]
  # A prompt has few of the vocabulary's words, so a sparse matrix takes time and memory linear in
  # the length of the texts.
  ends, columns, weights = [0], array.array("i"), array.array("f")
  for one in counted:
    for word, count in one.items():
      if (at := place.get(word)) is not None:
        columns.append(at)
        weights.append((1 + math.log(count)) * rarity[at])
    ends.append(len(columns))
  x_NV = sparse.csr_matrix(
    (np.asarray(weights, np.float32), np.asarray(columns, np.int32), ends),
    shape=(len(prompts), len(vocabulary)),
  )
  length_N = np.sqrt(np.asarray(x_NV.multiply(x_NV).sum(axis=1)).ravel())
  known = np.flatnonzero(length_N > 0)
  names = ["other"] * len(prompts)
  if not len(known):
    return names
  x_NV = sparse.csr_matrix(sparse.diags(1 / length_N[known]).astype(np.float32) @ x_NV[known])
  group_N, centre_KV = _cluster(x_NV, min(k, len(known)), np.random.default_rng(seed))
  away_KV = centre_KV - np.asarray(x_NV.mean(axis=0))
  called = [
    ", ".join(vocabulary[i] for i in np.argsort(-away_V, kind="stable")[:3]) for away_V in away_KV
  ]
  for i, group in zip(known, group_N, strict=True):
    names[i] = called[group]
  return names


def _cluster(
  x_NV: sparse.csr_matrix, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Spherical k-means: (cluster of each row [N], centres of the clusters, unit vectors [k, V]).

  Args:
    x_NV: rows of unit length.
    k: number of clusters.
    rng: draws the rows that the clusters start from.
  """
  best, result = -1.0, None
  for _ in range(_STARTS):
    count = x_NV.shape[0]
    centre_KV = x_NV[rng.choice(count, k, replace=False)].toarray()
    group_N = np.full(count, -1)
    for _ in range(_ROUNDS):
      near_NK = x_NV @ centre_KV.T
      moved_N = near_NK.argmax(axis=1)
      if (moved_N == group_N).all():
        break
      group_N = moved_N
      ones = np.ones(count, np.float32)
      total_KV = (
        sparse.csr_matrix((ones, (group_N, np.arange(count))), (k, count)) @ x_NV
      ).toarray()
      norm_K = np.linalg.norm(total_KV, axis=1, keepdims=True)
      # A cluster without rows keeps its centre.
      centre_KV = np.where(norm_K > 0, total_KV / np.maximum(norm_K, 1e-9), centre_KV)
    fit = float(near_NK.max(axis=1).mean())
    if fit > best:
      best, result = fit, (group_N, centre_KV)
  return result


def _content_words(prompt: Text) -> list[str]:
  """The words of a prompt (of messages, the user's) of four characters or more.

  Shorter words are mostly grammar. If no message is the user's, all messages are read.
  """
  if isinstance(prompt, str):
    text = prompt
  else:
    mine = tuple(m for m in prompt if m["role"] == "user")
    text = " ".join(texts_of(mine or prompt))
  return [word for word in words(text) if len(word) > 3]
