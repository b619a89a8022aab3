"""Rewards of a server that answers OpenRLHF's /get_reward.

    POST URL  {"query": [text, ..], "prompts": [text, ..], "labels": ["", ..]}
    answer    {"rewards": [number, ..], ..}

`query` is a prompt with its response, as the policy has written them, special tokens included; so
the server adds none (OpenRLHF 0.11, `remote_rm_fn` and `serve_rm`).
"""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.errors import InputError
from rm_jax.types import Text

# (prompt, response) -> (the prompt as text, the prompt with its response).
Render = Callable[[Text, str], tuple[str, str]]

_EXPECTED = 'expected {"rewards": [number, ..]}, as OpenRLHF\'s /get_reward answers'


class Server:
  """A function of rows {prompt, response} -> rewards, float64 [N], by a server.

  Args:
    url: of the server, with its path.
    render: makes the texts that it is asked about.
    at_once: rows of a request.
    timeout: seconds that an answer may take.
    tries: how often a request is sent that is not answered, or is answered with a status of 500 or
      above, one second apart.
  """

  def __init__(
    self,
    url: str,
    render: Render,
    *,
    at_once: int = 128,
    timeout: float = 180.0,
    tries: int = 5,
  ):
    self.url, self._render = url, render
    self._at_once, self._timeout, self._tries = at_once, timeout, tries

  def __call__(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The rewards of rows.

    Raises:
      InputError: the server is not reached or answers with an error, with something else than
        rewards, with another number of them, or with one that is not finite. The message names
        the URL and what was found and, of a reward, the row's response.
    """
    found: list[float] = []
    for start in range(0, len(rows), self._at_once):
      found += self._ask(rows[start : start + self._at_once])
    return np.asarray(found, np.float64)

  def _ask(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    texts = [self._render(row["prompt"], row["response"]) for row in rows]
    asked = {
      "query": [whole for _, whole in texts],
      "prompts": [prompt for prompt, _ in texts],
      "labels": [""] * len(rows),
    }
    answer = self._post(json.dumps(asked).encode("utf-8"))
    try:
      said = json.loads(answer)
    except (ValueError, RecursionError) as error:
      raise InputError(f"{self.url} answered {answer!r:.200}, no JSON; {_EXPECTED}") from error
    rewards = said.get("rewards") if isinstance(said, dict) else None
    if not isinstance(rewards, list):
      raise InputError(f"{self.url} answered {answer!r:.200}; {_EXPECTED}")
    if len(rewards) != len(rows):
      raise InputError(
        f"{self.url} answered {len(rewards)} rewards to {len(rows)} queries; expected as many"
      )
    for reward, row in zip(rewards, rows, strict=True):
      if not _is_finite(reward):
        raise InputError(
          f"{self.url} answered the reward {reward!r:.60} to the response "
          f"{row['response']!r:.60}; expected a finite number"
        )
    return [float(reward) for reward in rewards]

  def _post(self, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    try:
      request = urllib.request.Request(self.url, body, headers, method="POST")
    except ValueError as error:
      raise InputError(f"{self.url} is no URL of a server ({error}); {_EXPECTED}") from error
    for left in reversed(range(self._tries)):
      try:
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
          return answer.read()
      except urllib.error.HTTPError as error:
        why, again = f"answered with status {error.code} ({error.read()!r:.200})", error.code >= 500
      # URLError, timeouts and broken connections are OSErrors; an answer that is cut off, or is no
      # HTTP, is an HTTPException.
      except (OSError, http.client.HTTPException) as error:
        why, again = f"is not reached ({error})", True
      if not (again and left):
        break
      time.sleep(1.0)
    raise InputError(f"the reward server {self.url} {why}; {_EXPECTED}")


def _is_finite(value: Any) -> bool:
  """Whether a value of JSON is a number that a float can be; an integer may be too long for one."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:
    return False
