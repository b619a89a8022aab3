"""The two records that everything passes on: `Example` (text) and `Batch` (arrays).

A prompt with K responses is the unit, and the model reads a reward at each *mark*, a token of a
response. A pair is K = 2, a ranking K > 2. Losses see `scores [..., K]`, labels and a `where` mask,
so pairwise is a special case of the data and not of the code.

Shape letters: B rows, T columns (tokens) of a row, G groups a row, K marks a group, D model width,
A attributes, M members of an ensemble.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, get_type_hints

import jax
import numpy as np


class Message(TypedDict):
  """One turn of a conversation, as chat templates take it."""

  role: str
  content: str


# A string is used as it is; messages are rendered by the chat template.
Text = str | tuple[Message, ...]

# Kinds of feedback. The kind decides which losses can learn from a group and how it is evaluated.
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
    responses: K responses. Strings where the prompt is a string; else each is one or more messages,
      the first an assistant's (more where two conversations differ before their last turn).
    labels: a gain for each mark, finite; higher is always better. A mark is a response, so there
      are K labels, or a step, so there are as many as `steps` has. A pair is (1.0, 0.0). Zeros
      where the feedback is in `attributes`.
    kind: the kind of feedback, one of `KINDS`.
    margin: by how much the better one should win, in units of score; None where not given. Batches
      call it `pair_margin`, since losses have an option `margin` for all pairs.
    weight: of the example in the loss, >= 0.
    source: name of the data set or file that it came from, for metrics by source.
    origin: 'file:line' or similar, for error messages.
    conversation: identifies the conversation (by its first human turn). Examples that share it go
      to the same split and are resampled together in intervals.
    truth: K true rewards where the world that generated the example knows them, else None.
    pairs: K x K; [i, j] is the weight with which i was seen preferred to j: counts, or a
      probability p and 1 - p. None where the order of the labels says it all.
    ties: K x K, symmetric; the weight with which i and j were seen tied. None where nobody was
      asked about ties.
    steps: for each response the texts of its steps, which make up the response; None where
      responses are not in steps.
    authors: who wrote each response (a model, a system), for reports only. None where not known.
    answers: the final answer of each response, for majority votes; None where there is none.
    judges: for two responses, what each annotator said, by name: 1.0 the first is better, 0.0 the
      second, 0.5 a tie. For reports only; None where it is not known who said what.
    attributes: for each response its ratings, name -> a finite number, without those that nobody
      gave; None where the feedback is of another kind.
    objective: the one of the model's attributes that the judgement is about, as 'harmlessness' in a
      model of helpfulness and harmlessness; '' = the reward as a whole.
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
  objective: str = ""


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and dtype of one of `Batch`'s arrays, declared with the field itself.

  Packing, abstract batches and the check of a loss read these declarations (`ARRAYS`), so that a
  new field is declared once, in `Batch`.

  Attributes:
    axes: a shape letter (see the module) for each axis.
    dtype: of the elements.
    empty: the value where there is no token, group or mark.
    optional: the array is made only for data or an objective that need it; otherwise it is None, so
      that it costs neither memory nor transfer.
  """

  axes: str
  dtype: Any = np.int32
  empty: float = 0
  optional: bool = False

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape for the sizes of the axes' letters."""
    return tuple(sizes[letter] for letter in self.axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """A micro-batch: rows of tokens, each holding whole groups. There is no other batch class.

  A group is an example's prompt and responses. A branch is one response within the group; branch 0
  is the prompt, where the responses share it. A query column attends to a key column if both are in
  one group, the key is prompt (branch 0) or of the query's own branch, and, in a decoder, the key
  is not later. A group whose prompt is not shared has no branch 0: each branch then holds its own
  copy of the prompt.

  Each field declares its axes, its dtype (int32 if none is given) and its value in padding (0 if
  none is given). Arrays are numpy's on the host and jax's on the devices; all are sharded over B.
  """

  # Token ids.
  tokens: Annotated[jax.Array, Spec("BT")]
  # Which of the row's groups the column is in, 1 .. G; 0 = padding.
  group: Annotated[jax.Array, Spec("BT")]
  # Which of the group's branches, 1 .. K; 0 = the shared prompt (or padding).
  branch: Annotated[jax.Array, Spec("BT")]
  # Position of the token in its own prompt + response, for the position encoding.
  position: Annotated[jax.Array, Spec("BT")]
  # Column at which each reward is read.
  marks: Annotated[jax.Array, Spec("BGK")]
  # Which marks are real.
  where: Annotated[jax.Array, Spec("BGK", np.bool_)]
  # Gains, higher is better.
  labels: Annotated[jax.Array, Spec("BGK", np.float32)]
  # Weight of each group in the loss; 0 where there is no group.
  weight: Annotated[jax.Array, Spec("BG", np.float32)]
  # For mean pooling: the first column of the mean; the last one is the mark.
  starts: Annotated[jax.Array | None, Spec("BGK", optional=True)] = None
  # Which of the group's responses the mark reads, from 0. Losses of steps need it.
  response: Annotated[jax.Array | None, Spec("BGK")] = None
  # Kind of feedback, an index into `KINDS`.
  kind: Annotated[jax.Array | None, Spec("BG")] = None
  # Which of the data set's sources the group is from, an index in their order.
  source: Annotated[jax.Array | None, Spec("BG")] = None
  # Tokens of the mark's response, without its prompt.
  length: Annotated[jax.Array | None, Spec("BGK")] = None
  # The tokenizer's pair encoding (encoders only).
  token_type: Annotated[jax.Array | None, Spec("BT", optional=True)] = None
  # By how much response i should beat j, in units of score.
  pair_margin: Annotated[jax.Array | None, Spec("BGKK", np.float32, optional=True)] = None
  # Weight with which i was seen preferred to j, and, symmetric, with which the two were seen tied.
  # Groups that were not asked for comparisons have those of their labels' order.
  pairs: Annotated[jax.Array | None, Spec("BGKK", np.float32, optional=True)] = None
  ties: Annotated[jax.Array | None, Spec("BGKK", np.float32, optional=True)] = None
  # Column whose hidden state predicts this token, for the tokens of responses (for the first one,
  # the last column of the prompt). Decoders only, for the likelihood of text.
  previous: Annotated[jax.Array | None, Spec("BT", empty=-1, optional=True)] = None
  # Ratings on the model's attributes; NaN where not rated.
  attributes: Annotated[jax.Array | None, Spec("BGKA", np.float32, np.nan, optional=True)] = None
  # Which of the model's attributes the group's judgement is about, -1 = the reward as a whole.
  objective: Annotated[jax.Array | None, Spec("BG", empty=-1, optional=True)] = None
  # Column of the prompt's last token, for a head that weighs its attributes by the prompt.
  prompt_end: Annotated[jax.Array | None, Spec("BGK", optional=True)] = None
  # Weight of the group for each member of an ensemble (bootstrap counts).
  members: Annotated[jax.Array | None, Spec("BGM", np.float32, optional=True)] = None
  # Activations that enter the first trained layer, where the layers below are frozen and were run
  # beforehand. In the dtype of those activations.
  hidden: Annotated[jax.Array | None, Spec("BTD", np.float32, optional=True)] = None

  # Attention's windows, `layout.Shape.windows`; None where each row is one window. Each is a tuple
  # with an int32 [B, R, L] for each window length L, R windows of it a row.
  # `windows`: the columns of the row that a window holds, -1 where it is empty.
  windows: tuple[jax.Array, ...] | None = None
  # `segments`: columns of a window that may attend to one another have the same number; 0 = empty.
  segments: tuple[jax.Array, ...] | None = None
  # int32 [B, T, C]: the inverse of `windows`. Up to C places of a column in the row's windows, all
  # of them laid end to end; -1 where there are fewer. The columns of a shared prompt have several.
  places: jax.Array | None = None


ARRAYS: dict[str, Spec] = {
  name: hint.__metadata__[0]
  for name, hint in get_type_hints(Batch, include_extras=True).items()
  if hasattr(hint, "__metadata__")
}
