"""The proxy: the rewards that a policy is optimised against, and how sure they are.

A reward model is one folder, several of them (an ensemble, as are the heads of one), or a server.
Its scores go through a chain of shaping (`rm_jax.shaping`), whose stage 'lower' makes the members'
mean less some deviations of them.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rm_jax.api import RewardModel
from rm_jax.audit.sections.shaping import sample_of
from rm_jax.data.dialogue import plain
from rm_jax.errors import InputError
from rm_jax.policy.text import Policy
from rm_jax.rlhf.remote import Server
from rm_jax.rlhf.stages import digest_of, file_digest, text_digest
from rm_jax.shaping.chain import Chain, Fitted, plan
from rm_jax.shaping.stages import Responses
from rm_jax.storage.files import expanded
from rm_jax.types import Example, Text
from rm_jax.workdir.folder import is_workdir

log = logging.getLogger(__name__)

# Responses that a server is asked about each time it is opened: another model says something else.
_PROBE = [
  {"prompt": "Which planet is nearest to the sun?", "response": response}
  for response in (
    "Mercury.",
    "I would rather not say.",
    "The sun is a star, and so are others. " * 4,
  )
]
# Beginnings of the names of files that say how texts become tokens, and tokens scores.
_TOLD_BY = (
  "config.json",
  "rm_jax.json",
  "tokenizer",
  "special_tokens",
  "added_tokens",
  "chat_template",
  "vocab",
  "merges",
)
_FITTED_ON = 1000  # examples of the preferences that the numbers of a chain are fitted on, at most


@dataclasses.dataclass(frozen=True)
class Scored:
  """Scores of N responses.

  Attributes:
    raw: float64 [N], the reward model's own, of an ensemble the mean.
    shaped: float64 [N], the rewards: after the chain of shaping.
    disagreement: float64 [N], the standard deviation over the members; NaN where there is one.
    caught: bool [N], whether a filter of the chain has caught the response.
  """

  raw: np.ndarray
  shaped: np.ndarray
  disagreement: np.ndarray
  caught: np.ndarray


@dataclasses.dataclass(frozen=True)
class Proxy:
  """A function of rows {prompt, response} -> `Scored`.

  Attributes:
    members: rows -> scores of each member, [N, M].
    chain: of shaping; None = rewards are the scores.
    fingerprint: says which reward model and chain it is, of a server the URL.
    probe: of a server, what it says of a few fixed responses; else None.
    step_members: rows {prompt, completions: the texts of steps} -> for each row the scores of its
      steps by each folder, [M, steps]; None = whole responses are scored, by `members`.
  """

  members: Callable[[Sequence[Mapping[str, Any]]], np.ndarray]
  chain: Chain | None
  fingerprint: dict[str, Any]
  probe: list[float] | None = None
  step_members: Callable[[Sequence[Mapping[str, Any]]], list[np.ndarray]] | None = None

  def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Scored:
    """Scores rows.

    Raises:
      InputError: a score, or one after a stage of the chain, is not finite: the message names the
        response. Or as `Server` and `RewardModel.score_members`.
    """
    members_NM = np.asarray(self.members(rows), np.float64)
    names = [_name(row["response"]) for row in rows]
    if bad := [
      name for name, one in zip(names, members_NM, strict=True) if not np.isfinite(one).all()
    ]:
      raise InputError(f"{bad[0]}: its reward is not finite ({len(bad)} of {len(rows)} are not)")
    raw_N = shaped_N = members_NM.mean(axis=1)
    caught_N = np.zeros(len(rows), bool)
    if self.chain:
      responses = Responses(members_NM, [row["response"] for row in rows])
      made = self.chain.shape(responses, names)
      shaped_N = made.scores.astype(np.float64)
      caught_N = np.asarray([bool(reasons) for reasons in made.reasons], bool)
    alone = members_NM.shape[1] == 1
    apart_N = np.full(len(rows), np.nan) if alone else members_NM.std(axis=1)
    return Scored(raw_N, shaped_N, apart_N, caught_N)

  def steps(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[np.ndarray], Scored]:
    """Scores the steps of responses, where the proxy has `step_members`.

    Args:
      rows: N of them, each with `prompt` and `completions`, the texts of a response's steps.

    Returns:
      (for each row the scores of its steps, float64 [steps], of several folders their mean; what is
      said of the responses: the sums over their steps, and how much these differ among folders).

    Raises:
      InputError: a score is not finite: the message names the response. Or as
        `RewardModel.score_steps`.
    """
    found = [np.asarray(one_MS, np.float64) for one_MS in self.step_members(rows)]
    if bad := [
      row for row, one_MS in zip(rows, found, strict=True) if not np.isfinite(one_MS).all()
    ]:
      raise InputError(
        f"{_name(''.join(bad[0]['completions']))}: the reward of a step is not finite "
        f"({len(bad)} of {len(rows)} responses have such)"
      )
    total_NM = np.stack([one_MS.sum(axis=1) for one_MS in found])
    sum_N, nothing_N = total_NM.mean(axis=1), np.zeros(len(rows), bool)
    apart_N = np.full(len(rows), np.nan) if total_NM.shape[1] == 1 else total_NM.std(axis=1)
    return [one_MS.mean(axis=0) for one_MS in found], Scored(sum_N, sum_N, apart_N, nothing_N)


def _name(response: str) -> str:
  """How messages name a response."""
  return f"response {response!r:.60}"


def _files(name: str) -> str:
  """A digest of all but the weights that a folder's scores depend on; '' of what is no folder."""
  folder = expanded(name)
  if not folder.is_dir():
    return digest_of(name)
  places = (folder, folder / "model") if is_workdir(folder) else (folder,)
  found = [path for place in places for path in place.iterdir() if path.name.startswith(_TOLD_BY)]
  return text_digest(sorted([str(path.relative_to(folder)), file_digest(path)] for path in found))


def is_server(name: str) -> bool:
  """Whether a name of a reward model is the URL of a server."""
  return name.startswith(("http://", "https://"))


def open_proxy(
  names: Sequence[str],
  policy: Policy,
  mesh: Mesh,
  *,
  shaping: str = "",
  preferences: Callable[[], list[Example]] | None = None,
  fitted: Chain | None = None,
  steps: bool = False,
) -> Proxy:
  """Loads a reward model.

  Args:
    names: a folder, or several, or one URL of a server.
    policy: whose chat template makes the texts that a server is asked about.
    mesh: the devices.
    shaping: text of a chain, with or without all its numbers; '' = the chain that is saved with the
      model, if it is one folder and has one.
    preferences: reads feedback, on which numbers that `shaping` leaves out are fitted.
    fitted: the chain that `shaping` has become earlier, which is taken as it is.
    steps: whether the steps of responses are scored.

  Raises:
    InputError: there are several names and one is a server; numbers are to be fitted and there are
      no preferences; with `steps`, a server, an encoder, a judge's question, or a chain of shaping
      that is saved with the model; or as `RewardModel.from_pretrained` and `shaping.chain.plan`.
  """
  step_members = probe = None
  if any(map(is_server, names)):
    if steps:
      raise InputError(f"{names[0]} is a server, which scores no steps; expected folders")
    if len(names) > 1:
      raise InputError(
        f"reward.model is {','.join(names)!r}; expected one server, or folders alone"
      )
    server, own = Server(names[0], rendered(policy)), None
    fingerprint: dict[str, Any] = {"server": names[0]}
    probe = server(_PROBE).tolist()

    def members(rows):
      return server(rows)[:, None]
  else:
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names}
    models = [RewardModel.from_pretrained(name, mesh=sizes) for name in names]
    own = models[0].shaping if len(models) == 1 else None
    fingerprint = {
      "weights": [model.weights for model in models],
      "files": [_files(name) for name in names],
    }

    def members(rows):
      origins = [_name(row["response"]) for row in rows]
      return np.concatenate([m.score_members(rows, origins=origins) for m in models], axis=1)

    if steps:
      step_members = _of_steps(names, models, own)

  chain = own
  if shaping:
    chain = fitted or _chain(shaping, members, preferences)
  if chain:
    log.info("rewards are shaped by %s", chain)
  fingerprint |= {"chain": chain.digest if chain else ""}
  return Proxy(members, chain, fingerprint, probe, step_members)


def _of_steps(
  names: Sequence[str], models: Sequence[RewardModel], chain: Chain | None
) -> Callable[[Sequence[Mapping[str, Any]]], list[np.ndarray]]:
  """The models' scores of steps, see `Proxy.step_members`; raises InputError as `open_proxy`."""
  for name, model in zip(names, models, strict=True):
    if model.text_model.convention.encoder:
      raise InputError(f"{name} is an encoder, which scores no steps; expected a decoder")
    if model.text_model.convention.question:
      raise InputError(
        f"{name} asks a judge's question behind a whole response, and scores no steps; expected a "
        "model that was trained on steps"
      )
  if chain:
    raise InputError(
      f"{names[0]} has a chain of shaping ({chain}), which is for scores of whole responses; "
      "expected a model without shaping.json where --config.reward.steps=True"
    )

  def scores(rows):
    origins = [_name("".join(row["completions"])) for row in rows]
    each = [model.score_steps(rows, origins=origins) for model in models]
    return [np.stack(one) for one in zip(*each, strict=True)]

  return scores


def _chain(text: str, members: Callable, preferences: Callable[[], list[Example]] | None) -> Chain:
  where = "--config.shaping"
  made = plan(text, where)
  if not made.missing:
    return Chain(tuple(cls(**given) for cls, given in made.stages))
  if preferences is None:
    raise InputError(
      f"{where}={text!r} leaves numbers out ({made.missing}), and there are no preferences to fit "
      "them on; expected all numbers, or --config.preferences.path"
    )
  examples = preferences()[:_FITTED_ON]

  def of_pairs(rows):
    return members([{"prompt": prompt, "response": plain(text)} for prompt, text in rows])

  sample = sample_of(of_pairs, examples)
  conversations = len({example.conversation for example in examples})
  fitted = Fitted("the chain's preferences", conversations, len(sample.responses.texts))
  return made.fit(sample, fitted)


def rendered(policy: Policy) -> Callable[[Text, str], tuple[str, str]]:
  """(prompt, response) -> (the prompt as the policy reads it, that with the response and EOS)."""
  eos = policy.text_model.tokenizer.eos_token

  def render(prompt: Text, response: str) -> tuple[str, str]:
    if isinstance(prompt, str):
      return prompt, prompt + response + eos
    opening = policy.encoder.render(prompt, generation=True)
    return opening, opening + policy.lead(prompt) + response + eos

  return render
