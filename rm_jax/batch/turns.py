"""Which of a conversation's oldest turns are left out where it is too long."""

from collections.abc import Callable
from typing import TypeVar

from rm_jax.data.report import RowError
from rm_jax.types import Message

Item = TypeVar("Item")


def _without_oldest_turns(turns: list[Message]) -> list[list[Message]]:
  """The conversation without its oldest exchange, without its oldest two, and so on.

  An exchange is a turn of the role that the conversation opened with, and the turns up to the next
  one of that role. What is left so opens with that role, as many templates insist. System turns
  stay in place. The last exchange is never left out.
  """
  spoken = [i for i, m in enumerate(turns) if m["role"] != "system"]
  opener = turns[spoken[0]]["role"] if spoken else ""
  opens = [i for i in spoken[1:] if turns[i]["role"] == opener]
  return [[m for i, m in enumerate(turns) if i >= at or m["role"] == "system"] for at in opens]


def shortened(
  turns: list[Message], read: Callable[[list[Message]], Item], fits: Callable[[Item], bool]
) -> tuple[list[Message], Item | None]:
  """Leaves out as few of the oldest exchanges as possible, so that the rest fits.

  If no rest fits, the result is the shortest. Some templates refuse a conversation without its
  first turn; then the result is the shortest rest that the template renders.

  A long conversation must not be rendered as often as it has turns, so the search begins with the
  shortest rest, doubles the number of exchanges until the rest no longer fits, and then bisects: no
  rendering has more than about twice the exchanges that fit.

  Args:
    turns: of the prompt, which is too long as it is.
    read: renders and tokenises turns; raises RowError if the template refuses them.
    fits: whether what `read` returned is short enough. If it is for some turns, it is for fewer.

  Returns:
    (the turns that are left, `read` of them); all turns and None if no exchange can be left out.
  """
  rests = _without_oldest_turns(turns)
  # `rests[i]` is good if it fits or is refused; all after it, which are shorter, are then good too.
  known: dict[int, Item | None] = {}

  def good(i: int) -> bool:
    try:
      known[i] = read(rests[i])
    except RowError:
      known[i] = None
      return True
    return fits(known[i])

  # Indices into `rests`: the last that is known not to be good, the first that is known to be.
  low, high = -1, len(rests)
  i, width = len(rests) - 1, 1
  while i >= 0 and good(i):
    high, i, width = i, i - width, 2 * width
  low = max(low, i)
  while high - low > 1:
    middle = (low + high) // 2
    if good(middle):
      high = middle
    else:
      low = middle
  # The first good rest; if the template refused that, or no rest is good, the one before it.
  best = high if high < len(rests) and known[high] is not None else high - 1
  return (rests[best], known[best]) if best >= 0 else (turns, None)
