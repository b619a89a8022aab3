"""Every loss once more, for one list, as loops over floats: the formulas of the papers, in float64.

No array code and no numerical care: the values are for scores of size one.
"""

import math
from itertools import combinations


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def nll(x):
  """−log σ(x)."""
  return -math.log(sigmoid(x))


def mean(terms):
  """Σ w v / Σ w of (w, v), 0 where Σ w is."""
  terms = [(w, v) for w, v in terms if w > 0]
  total = sum(w for w, _ in terms)
  return sum(w * v for w, v in terms) / total if total else 0.0


class List:
  """One list: its real items and what was seen of them."""

  def __init__(self, scores, labels, where, pairs=None, ties=None, pair_margin=None):
    self.s, self.y = scores, labels
    self.real = [i for i, x in enumerate(where) if x]
    self.m = pair_margin
    self.seen, self.seen_tied = pairs, ties

  @property
  def pairs(self):
    """(i, j, w): i over j, for what it counts."""
    for i in self.real:
      for j in self.real:
        if i != j:
          seen = float(self.y[i] > self.y[j]) if self.seen is None else self.seen[i][j]
          yield i, j, seen

  @property
  def ties(self):
    """(i, j, w), once for each two."""
    for i, j in combinations(self.real, 2):
      if self.seen_tied is not None:
        seen = self.seen_tied[i][j]
      else:
        seen = float(self.y[i] == self.y[j] and self.seen is None)
      yield i, j, seen

  def compare(self, value, margin=0.0, temperature=1.0, use_margin=True):
    terms = []
    for i, j, w in self.pairs:
      m = margin + (self.m[i][j] if self.m is not None and use_margin else 0.0)
      terms.append((w, value(i, j, (self.s[i] - self.s[j] - m) / temperature)))
    return mean(terms)


def logistic(x, *, margin=0.0, smoothing=0.0, temperature=1.0):
  return x.compare(
    lambda i, j, d: (1 - smoothing) * nll(d) + smoothing * nll(-d), margin, temperature
  )


def scaled_logistic(x, *, smoothing=0.0, temperature=1.0):
  def value(i, j, d):
    return abs(x.m[i][j]) * ((1 - smoothing) * nll(d) + smoothing * nll(-d))

  return x.compare(value, 0.0, temperature, use_margin=False)


def hinge(x, *, margin=1.0):
  return x.compare(lambda i, j, d: max(0.0, -d), margin)


def squared_hinge(x, *, margin=1.0):
  return x.compare(lambda i, j, d: max(0.0, -d) ** 2, margin)


def exponential(x, *, margin=0.0, temperature=1.0, clamp=5.0):
  def value(i, j, d):
    return math.exp(-d) if -d <= clamp else math.exp(clamp) * (1 - d - clamp)

  return x.compare(value, margin, temperature)


def ipo(x, *, tau=0.1):
  # The paper's, of h = D / τ.
  return x.compare(lambda i, j, d: (d / tau - 1 / (2 * tau)) ** 2)


def noisy_logistic(x, *, margin=0.0, temperature=1.0, rate=0.1):
  return x.compare(
    lambda i, j, d: -math.log((1 - rate) * sigmoid(d) + rate * sigmoid(-d)), margin, temperature
  )


def learned_noise(x, *, params, margin=0.0, temperature=1.0):
  rate = sigmoid(params["noise_logit"]) / 2
  return noisy_logistic(x, margin=margin, temperature=temperature, rate=rate)


def unbiased_logistic(x, *, margin=0.0, temperature=1.0, rate=0.1):
  def value(i, j, d):
    return ((1 - rate) * nll(d) - rate * nll(-d)) / (1 - 2 * rate)

  return x.compare(value, margin, temperature)


def tie_model(x, win, tie, smoothing):
  def won(i, j):
    d = x.s[i] - x.s[j]
    return -(1 - smoothing) * math.log(win(d)) - smoothing * math.log(win(-d))

  terms = [(w, won(i, j)) for i, j, w in x.pairs]
  terms += [(w, -math.log(tie(x.s[i] - x.s[j]))) for i, j, w in x.ties]
  return mean(terms)


def rao_kupper(x, *, params, smoothing=0.0):
  theta = 1 + math.exp(params["log_tie"])

  def win(d):
    return math.exp(d) / (math.exp(d) + theta)

  return tie_model(x, win, lambda d: 1 - win(d) - win(-d), smoothing)


def davidson(x, *, params, smoothing=0.0):
  nu = math.exp(params["log_tie"])

  def win(d):
    return math.exp(d) / (math.exp(d) + 1 + nu * math.sqrt(math.exp(d)))

  return tie_model(x, win, lambda d: 1 - win(d) - win(-d), smoothing)


def log_softmax(x):
  total = sum(math.exp(x.s[i]) for i in x.real)
  return {i: math.log(math.exp(x.s[i]) / total) for i in x.real}


def listnet(x, *, temperature=1.0):
  p = log_softmax(x)
  return mean([(math.exp(x.y[i] / temperature), -p[i]) for i in x.real])


def best_of_k(x):
  p = log_softmax(x)
  best = max(x.y[i] for i in x.real)
  return mean([(1.0, -p[i]) for i in x.real if x.y[i] == best])


def plackett_luce(x, *, top=None):
  total, stage = 0.0, 0
  for level in sorted({x.y[i] for i in x.real}, reverse=True):
    tied = [i for i in x.real if x.y[i] == level]
    below = sum(math.exp(x.s[i]) for i in x.real if x.y[i] < level)
    group = sum(math.exp(x.s[i]) for i in tied)
    for r in range(len(tied)):
      if top is None or stage < top:
        left = math.log(below + group * (1 - r / len(tied)))
        total += sum(left - x.s[i] for i in tied) / len(tied)
      stage += 1
  return total


def lambda_ndcg(x, *, mu=10.0):
  def discount(r):
    return 1 / math.log2(1 + r)

  low = min(x.y[i] for i in x.real)
  order = sorted((x.y[i] for i in x.real), reverse=True)
  ideal = sum((2**y - 2**low) * discount(r) for r, y in enumerate(order, 1))
  ranked = sorted(x.real, key=lambda i: -x.s[i])
  rank = {i: r for r, i in enumerate(ranked, 1)}
  total = 0.0
  for i, j, w in x.pairs:
    if w:
      gap = abs(rank[i] - rank[j])
      rho = abs(discount(rank[i]) - discount(rank[j]))
      delta = discount(gap) - discount(gap + 1)
      gain = abs(2 ** x.y[i] - 2 ** x.y[j]) / ideal
      total += w * (rho + mu * delta) * gain * nll(x.s[i] - x.s[j])
  return total


def entropy(s, y):
  return y * nll(s) + (1 - y) * nll(-s)


def bce(x):
  return mean([(1.0, entropy(x.s[i], x.y[i])) for i in x.real])


def kto(x, *, baseline=0.0, desirable=1.0, undesirable=1.0):
  def value(s, y):
    # The paper's λ_y − λ_y σ(±(s − z₀)).
    good = desirable - desirable * sigmoid(s - baseline)
    bad = undesirable - undesirable * sigmoid(baseline - s)
    return y * good + (1 - y) * bad

  return mean([(1.0, value(x.s[i], x.y[i])) for i in x.real])


def likelihood(x):
  return mean([(x.y[i], -x.s[i]) for i in x.real])


def mse(x):
  return mean([(1.0, (x.s[i] - x.y[i]) ** 2) for i in x.real])


def huber(x, *, delta=1.0):
  def value(r):
    return r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)

  return mean([(1.0, value(x.s[i] - x.y[i])) for i in x.real])


def ordinal(x, *, params):
  cuts = [params["first"]]
  for step in params["log_steps"]:
    cuts.append(cuts[-1] + math.exp(step))

  def up_to(grade, s):
    return 0.0 if grade < 0 else 1.0 if grade >= len(cuts) else sigmoid(cuts[grade] - s)

  def value(grade, s):
    return -math.log(up_to(grade, s) - up_to(grade - 1, s))

  return mean([(1.0, value(int(x.y[i]), x.s[i])) for i in x.real])


def process(x, *, response=None, steps="all"):
  chosen, wrong, last = [], set(), {}
  for i in x.real:
    whose = None if response is None else response[i]
    if steps != "first_error" or whose not in wrong:
      chosen.append(i)
    if x.y[i] < 0.5:
      wrong.add(whose)
    last[whose] = i
  if steps == "last":
    chosen = list(last.values())
  return mean([(1.0, entropy(x.s[i], x.y[i])) for i in chosen])


def attribute_mse(x):
  return mean(
    [
      (1.0, (s[i] - y[i]) ** 2)
      for s, y in zip(x.s, x.y, strict=True)
      for i in x.real
      if not math.isnan(y[i])
    ]
  )
