"""What flows through the house: `Example` (text, on the host) and `Batch` (arrays, on the devices).

A prompt with K responses is the unit, and the model reads a reward at each *mark*. A pair is K = 2,
a ranking K > 2. Losses see `scores [..., K]`, labels and a `where` mask, so pairwise is a special
case of the data and not of the code.

Shape letters: B rows, T columns (tokens) of a row, G groups a row, K marks a group, D model width,
A attributes.
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

# Kinds of feedback: which losses can use it, and how it is evaluated.
KINDS = (
  "pair",  # two responses, one comparison
  "ranking",  # K responses: their order, or comparisons of some of them
  "outcome",  # a response is good or not: labels in [0, 1]
  "score",  # a response's rating: any real number
  "step",  # a solution's steps are right so far or not: labels in [0, 1] at the end of each
  "attributes",  # a response's ratings on several attributes, some of which may be missing
)
Matrix = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One prompt, its K responses, and what people said of them.

  Attributes:
    prompt: a string, or the messages before the responses. Never empty.
    responses: K responses: strings where the prompt is one, else each one or more messages (the
      first an assistant's; more where two conversations part before their last turn).
    labels: a gain for each mark, finite; higher is better, always. A mark is a response, so there
      are K, or a step, so there are as many as `steps` has. A pair is (1.0, 0.0). Zeros where
      `attributes` says it all.
    kind: the kind of feedback, one of `KINDS`.
    margin: by how much the better one should win, in units of score; None where not given.
    weight: of the example in the loss, >= 0.
    source: name of the data set or file that it came from, for metrics by source.
    origin: 'file:line' (or the like), for error messages.
    conversation: what its conversation is known by (its first human turn): examples that share it
      go to the same split and are resampled together in intervals.
    truth: K true rewards where the world that made the example knows them, else None.
    pairs: K x K, by what weight i was seen preferred to j: counts, or a probability p and 1 - p.
      None where the order of the labels says it all.
    ties: K x K, symmetric, by what weight i and j were seen tied; None where nobody was asked.
    steps: for each response the texts of its steps, which it consists of; None where it is whole.
    authors: who wrote each response (a model, a system), for reports alone; None where not known.
    answers: the final answer that each response comes to, for votes; None where there is none.
    judges: of two responses, what each annotator said, by name: 1.0 the first is better, 0.0 the
      second, 0.5 a tie; for reports alone. None where it is not known who said what.
    attributes: for each response its ratings, name -> a finite number, without those that nobody
      gave; None where the feedback is of another kind.
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
  pairs: Matrix | None = None
  ties: Matrix | None = None
  steps: tuple[tuple[str, ...], ...] | None = None
  authors: tuple[str, ...] | None = None
  answers: tuple[str, ...] | None = None
  judges: dict[str, float] | None = None
  attributes: tuple[dict[str, float], ...] | None = None


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
    starts: int32 [B, G, K], where a reward is read from a mean, the first column of it; the last is
      its mark.
    where: bool [B, G, K], which marks are real.
    labels: float32 [B, G, K], gains.
    weight: float32 [B, G], of each group; 0 where there is none.
    response: int32 [B, G, K], which of the group's responses a mark reads, from 0.
    kind: int32 [B, G], index into `KINDS`.
    source: int32 [B, G], which of the data set's sources the group is from, in their order.
    length: int32 [B, G, K], tokens of the mark's response, its prompt not counted.
    token_type: int32 [B, T], the tokenizer's pair encoding (encoders only).
    pair_margin: float32 [B, G, K, K], by how much i should beat j.
    pairs: float32 [B, G, K, K], by what weight i was seen preferred to j. Where a group's feedback
      has none, those of its labels' order.
    ties: float32 [B, G, K, K], symmetric, by what weight i and j were seen tied; likewise.
    previous: int32 [B, T], the column whose hidden state predicts the token, of each response's own
      tokens (of the first, the last of its prompt's); -1 elsewhere. Decoders only.
    attributes: float32 [B, G, K, A], ratings on a model's attributes; NaN where there is none.
    members: float32 [B, G, M], by how much the group counts for each member of an ensemble.
    hidden: float [B, T, D], activations that enter the first trained layer, where the layers below
      are frozen and were run beforehand.
    windows: int32 [B, R, L] for each of a few lengths L: columns of the row, -1 where there is
      none. Attention lies within them. None where a row is one window.
    segments: int32 [B, R, L], likewise: the columns of a window that may see one another have the
      same number; 0 where there is none.
    places: int32 [B, T, C], where each column stands in the row's windows, those of `windows` laid
      end to end: a shared prompt's columns may stand in several; -1 elsewhere.
  """

  tokens: jax.Array
  group: jax.Array
  branch: jax.Array
  position: jax.Array
  marks: jax.Array
  where: jax.Array
  labels: jax.Array
  weight: jax.Array
  starts: jax.Array | None = None
  response: jax.Array | None = None
  kind: jax.Array | None = None
  source: jax.Array | None = None
  length: jax.Array | None = None
  token_type: jax.Array | None = None
  pair_margin: jax.Array | None = None
  pairs: jax.Array | None = None
  ties: jax.Array | None = None
  previous: jax.Array | None = None
  attributes: jax.Array | None = None
  members: jax.Array | None = None
  hidden: jax.Array | None = None
  windows: tuple[jax.Array, ...] | None = None
  segments: tuple[jax.Array, ...] | None = None
  places: jax.Array | None = None
