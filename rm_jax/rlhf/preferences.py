"""The second stage of a chain: pairs of the policy's own responses, judged.

preferences.jsonl has rows {prompt, chosen, rejected}, as `rm_jax.data` reads pairs, and beside them
`scores`, what the judge thought of the two. A pair is judged as in the generated world:

    P(y over y') = sigmoid((s(y) − s(y')) / temperature)          (Bradley–Terry)

with s the true reward, or the score of another reward model, whose temperature is 1.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rm_jax.data import formats
from rm_jax.data.dialogue import key_of
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.policy.rollout import sample
from rm_jax.rlhf.policies import Loaded
from rm_jax.rlhf.prompts import Truth
from rm_jax.rlhf.stages import Stage, file_digest
from rm_jax.storage.files import expanded, write_atomically
from rm_jax.types import Example, Text
from rm_jax.workdir.folder import locked

log = logging.getLogger(__name__)

FILE = "preferences.jsonl"
PARTS = ("seed", "preferences", "sampling", "world", "data.max_length")


def sampled(
  config: Any,
  stage: Stage,
  load: Callable[[], Loaded],
  prompts: Sequence[Text],
  judge: Truth,
  *,
  temperature: float,
) -> dict[str, Any]:
  """Samples pairs and has them judged.

  Args:
    config: the chain's.
    stage: see `stages.Stage`.
    load: makes the policy that writes the responses.
    prompts: texts.
    judge: (prompts, responses) -> numbers, the higher the better.
    temperature: of the judge; 0 = it never errs.

  Returns:
    the stage's results: {path of the file, digest of it, pairs, alike: prompts whose samples had
    one text and that have no pair, agreement: the share of pairs whose chosen response has the
    higher number, equal ones count half}.

  Raises:
    InputError: no prompt has two different responses.
  """
  path = stage.folder / FILE

  def results_of(done: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file() or file_digest(path) != done["digest"]:
      raise InputError(
        f"{path}: is not the file that this stage wrote; put it back, or give yours as "
        "--config.preferences.path with another --workdir"
      )
    return done | {"path": str(path)}

  if (done := stage.done()) is not None:
    return results_of(done)
  with locked(stage.folder):
    if (done := stage.done()) is not None:  # another process was at work on it
      return results_of(done)
    stage.begin()
    loaded, c = load(), config.preferences
    policy = loaded.policy
    drawing = policy.sampling(
      config.sampling.tokens,
      temperature=config.sampling.temperature,
      top_p=config.sampling.top_p,
    )
    ids = policy.prompt_ids(prompts, config.sampling.tokens)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    made = sample(
      policy, loaded.nested, ids, key, samples=c.samples, sampling=drawing, mesh=loaded.mesh
    )
    asked: list[Text] = []
    texts: list[str] = []
    for p, prompt in enumerate(prompts):
      lead, different = policy.lead(prompt), {}
      for s in range(c.samples):
        own = made.tokens[p, s, : made.length[p, s] - made.ended[p, s]]
        text = policy.text(ids[p], own).removeprefix(lead)
        if text.strip():
          different.setdefault(text)
      if len(different) > 1:
        asked += [prompt, prompt]
        texts += list(different)[:2]
    if not asked:
      raise InputError(
        f"{stage.folder}: none of {len(prompts)} prompts has two different responses; expected a "
        "policy that varies: a higher --config.sampling.temperature, or more "
        "--config.preferences.samples"
      )
    scores_N2 = np.asarray(judge(asked, texts), np.float64).reshape(-1, 2)
    flips = config.world.flips
    order_N2 = judged(scores_N2, temperature, flips, np.random.default_rng([config.seed, 2]))
    rows = [
      row(asked[2 * i], [texts[2 * i + j] for j in order], scores_N2[i][order])
      for i, order in enumerate(order_N2)
    ]
    write_atomically(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    better_N = np.diff(np.take_along_axis(scores_N2, order_N2, 1), axis=1)[:, 0]
    agreement = float(np.mean((better_N < 0) + 0.5 * (better_N == 0)))
    log.info("%d pairs of preferences, agreement with the truth %.3f", len(rows), agreement)
    results = {
      "digest": file_digest(path),
      "pairs": len(rows),
      "alike": len(prompts) - len(rows),
      "agreement": agreement,
    }
    return stage.finish(results) | {"path": str(path)}


def judged(
  scores_N2: np.ndarray, temperature: float, flips: float, rng: np.random.Generator
) -> np.ndarray:
  """int64 [N, 2], for each pair the index of the preferred response and that of the other one.

  Args:
    scores_N2: what the judge thinks of the two.
    temperature: of the judge; Gumbel noise of this scale is added to each score, which makes the
      preference the Bradley-Terry model's (Yellott 1977).
    flips: the probability that a label is reversed.
    rng: of the noise and the reversals.
  """
  noisy_N2 = scores_N2 + temperature * rng.gumbel(size=scores_N2.shape)
  order_N2 = np.argsort(-noisy_N2, axis=1, kind="stable")
  return np.where(rng.random(len(order_N2))[:, None] < flips, order_N2[:, ::-1], order_N2)


def row(prompt: Text, two: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
  """A row of the file: the preferred response comes first in `two`."""
  if not isinstance(prompt, str):
    prompt = [dict(message) for message in prompt]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in two)
  else:
    chosen, rejected = two
  return {
    "prompt": prompt,
    "chosen": chosen,
    "rejected": rejected,
    "scores": [float(score) for score in scores],
  }


def given(config: Any, evaluation: Sequence[Text]) -> dict[str, Any]:
  """The results of a stage that a file of preferences replaces.

  Args:
    config: the chain's, with preferences.path.
    evaluation: prompts that policies are compared on.

  Returns:
    {path of the file, digest of it, in_evaluation: how many of the evaluation prompts have
    preferences in it}; the log warns of such prompts.

  Raises:
    DataError: as `examples_of`.
  """
  path = expanded(config.preferences.path)
  there = {key_of(example.prompt) for example in examples_of(config)}
  both = len(there & {key_of(prompt) for prompt in evaluation})
  if both:
    log.warning(
      "%s has preferences of %d of the %d evaluation prompts: what learns from it may be better on "
      "these than on others",
      path,
      both,
      len(evaluation),
    )
  return {"path": str(path), "digest": file_digest(path), "in_evaluation": both}


def examples_of(config: Any, path: str = "") -> list[Example]:
  """The examples of preferences, as the training run reads them that learns from them.

  Args:
    config: the chain's.
    path: of a file that `sampled` wrote; '' = config.preferences.path.

  Raises:
    DataError: as `formats.load`.
  """
  data = (config.dpo if config.method == "dpo" else config.reward.run).data
  options = {"format": data.format, "columns": data.get("columns")}
  return formats.load(path or config.preferences.path, report=Report(), **options)
