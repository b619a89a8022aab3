"""What flows through the house: `Example` (text, on the host) and `Batch` (arrays, on the devices).

A prompt with K responses is the unit, and the model reads a reward at each *mark*. A pair is K = 2,
a ranking K > 2. Losses see `scores [..., K]`, labels and a `where` mask, so pairwise is a special
case of the data and not of the code.

Shape letters: B rows, T columns (tokens) of a row, G groups a row, K marks a group, D model width.
"""

import dataclasses
from typing import TypedDict

import jax


class Message(TypedDict):
  """One turn of a conversation, as chat templates take it."""

  role: str
  content: str


# A string is taken as it is; messages go through the chat template.
Text = str | tuple[Message, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One prompt, its K responses, and what people said of them.

  Attributes:
    prompt: a string, or the messages before the responses. Never empty.
    responses: K responses: strings where the prompt is one, else each one or more messages (the
      first an assistant's; more where two conversations part before their last turn).
    labels: K gains, finite; higher is better, always. A pair is (1.0, 0.0).
    kind: the kind of feedback; 'pair' is K = 2 with one observed comparison.
    margin: by how much the better one should win, in units of score; None where not given.
    weight: of the example in the loss, >= 0.
    source: name of the data set or file that it came from, for metrics by source.
    origin: 'file:line' (or the like), for error messages.
    conversation: what its conversation is known by (its first human turn): examples that share it
      go to the same split and are resampled together in intervals.
    truth: K true rewards where the world that made the example knows them, else None.
  """

  prompt: Text
  responses: tuple[Text, ...]
  labels: tuple[float, ...]
  kind: str = "pair"
  margin: float | None = None
  weight: float = 1.0
  source: str = ""
  origin: str = ""
  conversation: str = ""
  truth: tuple[float, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of tokens, each holding whole groups; the only batch there is.

  A query column sees a key column when both are of one group, the key is prompt (branch 0) or of
  the query's own branch, and, in a decoder, the key is not later. A group whose prompt is not
  shared has no branch 0: each branch then holds its own copy of it. What is not used is None.

  Attributes:
    tokens: int32 [B, T], 0 where padding.
    group: int32 [B, T], 1 .. G; 0 = padding.
    branch: int32 [B, T], 1 .. K; 0 = shared prompt (or padding).
    position: int32 [B, T], of the token in its own prompt + response.
    marks: int32 [B, G, K], the column of each reward to read.
    where: bool [B, G, K], which marks are real.
    labels: float32 [B, G, K], gains.
    weight: float32 [B, G], of each group; 0 where there is none.
    token_type: int32 [B, T], the tokenizer's pair encoding (encoders only).
    pair_margin: float32 [B, G, K, K], by how much i should beat j.
    hidden: float [B, T, D], activations that enter the first trained layer, where the layers below
      are frozen and were run beforehand.
  """

  tokens: jax.Array
  group: jax.Array
  branch: jax.Array
  position: jax.Array
  marks: jax.Array
  where: jax.Array
  labels: jax.Array
  weight: jax.Array
  token_type: jax.Array | None = None
  pair_margin: jax.Array | None = None
  hidden: jax.Array | None = None
