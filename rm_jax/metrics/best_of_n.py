"""Over-optimisation by best-of-n: how the true reward changes as a proxy reward is maximised.

Each prompt has N candidates, each with the proxy's score and the true reward. The candidate with
the highest proxy score among n of them is chosen, for n = 1, 2, .. . The curve is the expected
proxy and true reward of the choice, relative to n = 1, against √KL, the square root of the KL
divergence between choosing the best of n and drawing one candidate.

Gao, Schulman and Hilton (2022), Scaling laws for reward model overoptimization (the curves and
their forms). Nakano et al. (2021), WebGPT (the unbiased estimator). Beirami et al. (2024),
Theoretical guarantees on the best-of-n alignment policy (log n − (n − 1)/n is an upper bound).
Montiel Olea and Plagborg-Møller (2019), Simultaneous confidence bands.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics.interval import FEW, TINY, Resampling, student

_ALIKE = "it is the same in all resamples: how conversations differ is unknown"
_CONVERSATIONS = 10  # With fewer conversations, `peak` does not say whether there is a peak.


def kl(n: int) -> float:
  """KL divergence of best-of-n from the policy that it draws from, log n − (n − 1)/n, in nats.

  It is exact if the proxy never ties, and an upper bound if it can (Beirami et al. 2024).

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f"n is {n}; expected at least 1")
  return math.log(n) - (n - 1) / n


def weights(ns: Sequence[int], candidates: int) -> np.ndarray:
  """Probability that the i-th lowest of N is the best of n drawn without replacement.

    C(i − 1, n − 1) / C(N, n),   i = 1 .. N; 0 for i < n

  Args:
    ns: M values of n.
    candidates: N.

  Returns:
    float64 [M, N]; each row sums to 1.

  Raises:
    ValueError: an n is not in 1 .. N, or there is none.
  """
  ns = [int(n) for n in ns]
  if not ns or min(ns) < 1 or max(ns) > candidates:
    raise ValueError(f"ns is {ns}; expected numbers from 1 to the {candidates} candidates")
  log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, candidates + 1)))])

  def log_choose(a, b):
    return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

  found_MN = np.zeros((len(ns), candidates))
  for row_N, n in zip(found_MN, ns, strict=True):
    below = np.arange(n - 1, candidates)  # i − 1
    row_N[n - 1 :] = np.exp(log_choose(below, n - 1) - log_choose(candidates, n))
    row_N /= row_N.sum()  # Removes the rounding errors of the logarithms.
  return found_MN


def best_of_n(
  proxy_PN: npt.ArrayLike, true_PN: npt.ArrayLike, ns: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
  """Expected proxy and true reward of the candidate with the highest proxy among n.

  The expectation is over all subsets of n of a prompt's N candidates, which makes it an unbiased
  estimate for n fresh candidates (Nakano et al. 2021). Candidates with equal proxies all get the
  mean of their true rewards, which is the expectation if ties are broken at random.

  Args:
    proxy_PN: [P, N], N candidates for each of P prompts.
    true_PN: [P, N].
    ns: M numbers from 1 to N. For n near N the estimate depends on few candidates of each prompt,
      and for n = N on one, so N should be larger than the largest n.

  Returns:
    (proxy [P, M], true [P, M], number of prompts with tied proxies).

  Raises:
    ValueError: shapes differ or are empty, a value is not finite, ns is empty, or an n is out of
      range.
  """
  proxy_PN, true_PN = np.asarray(proxy_PN, np.float64), np.asarray(true_PN, np.float64)
  if proxy_PN.ndim != 2 or proxy_PN.shape != true_PN.shape or not proxy_PN.size:
    raise ValueError(
      f"proxy_PN is {proxy_PN.shape}, true_PN {true_PN.shape}; expected one [P, N], not empty"
    )
  for array, name in ((proxy_PN, "proxy_PN"), (true_PN, "true_PN")):
    if not np.isfinite(array).all():
      raise ValueError(f"{name} has {(~np.isfinite(array)).sum()} not finite; expected none")
  weight_MN = weights(ns, proxy_PN.shape[1])
  order_PN = np.argsort(proxy_PN, axis=1, kind="stable")
  proxy_PN = np.take_along_axis(proxy_PN, order_PN, axis=1)
  true_PN = np.take_along_axis(true_PN, order_PN, axis=1)
  first_PN = np.ones(proxy_PN.shape, bool)  # First of a block of equal proxies?
  first_PN[:, 1:] = proxy_PN[:, 1:] > proxy_PN[:, :-1]
  if not first_PN.all():
    block = np.cumsum(first_PN.ravel()) - 1
    mean = np.bincount(block, true_PN.ravel()) / np.bincount(block)
    true_PN = mean[block].reshape(true_PN.shape)
  tied = int((~first_PN).any(axis=1).sum())
  return proxy_PN @ weight_MN.T, true_PN @ weight_MN.T, tied


def best_of_n_curve(
  proxy_PN: npt.ArrayLike,
  true_PN: npt.ArrayLike,
  ns: Sequence[int],
  *,
  clusters: Sequence[Hashable] | None = None,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> dict:
  """The best-of-n curve, Gao et al.'s forms fitted to it, and whether the true reward peaks.

  Args:
    proxy_PN, true_PN, ns: of `best_of_n`; ns increasing, with at least 3 above 1. 1 is added.
    clusters: P labels; prompts with the same label are resampled together. By default each prompt
      is a cluster of its own.
    level, resamples, seed: of `interval.Resampling` over clusters of prompts. Intervals of points
      and fits use the same replicates, which with few clusters are a jackknife's; `peak` always has
      bootstrap resamples.

  Returns:
    {n: the n's, kl, kl_is: 'exact' or 'an upper bound' (if proxies tie), tied_prompts, prompts,
    candidates, proxy and true: for each n {value, interval (with `method` or `why`), n: prompts},
    relative to n = 1, in units of the rewards; fits: {proxy, true} of `fit_gao`, each {bon, rl};
    peak: of `peak`}.

  Raises:
    ValueError: as `best_of_n`; ns do not increase or are too few; there are not P cluster labels or
      fewer than 2 clusters; `level` is out of its range, or `resamples` below 2.
  """
  if resamples < 2:
    raise ValueError(f"resamples is {resamples}; expected at least 2")
  ns = [int(n) for n in ns]
  ns = ns if 1 in ns else [1, *ns]
  if sorted(set(ns)) != ns or len(ns) < 4:
    raise ValueError(f"ns is {ns}; expected increasing, and at least 3 above 1")
  proxy_PM, true_PM, tied = best_of_n(proxy_PN, true_PN, ns)
  prompts, candidates = np.shape(proxy_PN)
  proxy_PM, true_PM = _relative(proxy_PM), _relative(true_PM)
  plan = Resampling(
    range(prompts) if clusters is None else clusters, level=level, resamples=resamples, seed=seed
  )
  if plan.count < 2:
    raise ValueError(f"{plan.count} cluster(s); a curve wants at least 2")
  kls = [kl(n) for n in ns]
  report = {
    "n": ns,
    "kl": kls,
    "kl_is": "an upper bound" if tied else "exact",
    "tied_prompts": tied,
    "prompts": prompts,
    "candidates": candidates,
    "fits": {},
  }
  d_M = np.sqrt(kls)
  for name, x_PM in (("proxy", proxy_PM), ("true", true_PM)):
    mean_M, draws_RM = x_PM.mean(axis=0), _means(x_PM, plan)
    report[name] = [
      _point(plan, value, values, prompts) for value, values in zip(mean_M, draws_RM.T, strict=True)
    ]
    report["fits"][name] = {
      form: fit_gao(d_M, mean_M, form=form, draws_RM=draws_RM, plan=plan) for form in ("bon", "rl")
    }
  return report | {"peak": _peak(ns, true_PM, plan, resamples, level, seed)}


def _means(x_PM: np.ndarray, plan: Resampling) -> np.ndarray:
  """Means over the prompts of each replicate of a resampling plan, [R, M]."""
  sum_CM = np.stack([np.bincount(plan.cluster_N, x) for x in x_PM.T], axis=1)
  size_C = np.bincount(plan.cluster_N)
  found = [times_RC @ sum_CM / (times_RC @ size_C)[:, None] for times_RC in plan.times()]
  return np.concatenate(found) if found else np.zeros((0, x_PM.shape[1]))


def _point(plan: Resampling, value: float, values_R: np.ndarray, prompts: int) -> dict:
  """One point of the curve with its interval."""
  figure = {"value": float(value), "interval": None, "n": prompts}
  if not plan.why and value == 0 and not values_R.any():
    return figure | {"interval": [0.0, 0.0]}  # n = 1, 0 by definition, or a constant curve.
  return figure | plan.interval(value, values_R).report()


def _peak(ns, true_PM: np.ndarray, plan: Resampling, resamples: int, level: float, seed: int):
  """`peak` of the curve. Its band needs the joint distribution over all n, so it is bootstrapped
  however few clusters there are."""
  clusters = plan.cluster_N.tolist()
  drawn = Resampling(clusters, resamples=resamples, seed=seed, least=1, bootstrap=True)
  return peak(ns, true_PM.mean(axis=0), _means(true_PM, drawn), plan.worth, level=level)


def fit_gao(
  d_M: npt.ArrayLike,
  reward_M: npt.ArrayLike,
  *,
  form: str = "bon",
  draws_RM: npt.ArrayLike | None = None,
  plan: Resampling | None = None,
) -> dict:
  """Fits a form of Gao et al. by least squares: 'bon' R = d (α − β d), 'rl' R = d (α − β log d).

  The fitted curve has its maximum at d* = α/(2β) or exp(α/β − 1), if β > 0 and, for 'bon', α > 0.
  Both forms are empirical and need not fit: `residual` measures how well they do, and `peak` looks
  for a maximum without assuming a form.

  Args:
    d_M: [M], √KL, 0 or more; points at 0 are left out, because both forms are 0 there.
    reward_M: [M], relative to n = 1.
    form: 'bon' for best-of-n, 'rl' for a policy trained by RL.
    draws_RM: [R, M], the rewards in the replicates of `plan`.
    plan: the resampling plan that makes intervals from these replicates; None = no intervals.

  Returns:
    {form, alpha: {value, interval}, beta: {value, interval}, residual: root mean square, in units
    of the reward, peak: {value: d*, interval, inside: 0 < d* <= max d, undefined: replicates
    without a maximum}}. The peak's value is None, with `why`, if the form has no maximum; its
    interval is None if the form has none in some replicate. With a plan, every interval that is
    None has `why`, and others have `method` as of `interval.Interval.report`.

  Raises:
    ValueError: shapes differ, fewer than 2 different d above 0 or one below, a value is not finite,
      or `form` is unknown.
  """
  d_M, reward_M = np.asarray(d_M, np.float64), np.asarray(reward_M, np.float64)
  draws_RM = np.zeros((0, d_M.size)) if draws_RM is None else np.asarray(draws_RM, np.float64)
  if d_M.ndim != 1 or d_M.shape != reward_M.shape or draws_RM.shape[1:] != d_M.shape:
    raise ValueError(
      f"d_M is {d_M.shape}, reward_M {reward_M.shape}, draws_RM {draws_RM.shape}; expected one M"
    )
  if not all(np.isfinite(x).all() for x in (d_M, reward_M, draws_RM)):
    raise ValueError("d_M, reward_M or draws_RM has what is not finite")
  if form not in ("bon", "rl"):
    raise ValueError(f"form is {form!r}; expected 'bon' or 'rl'")
  use = d_M > 0
  d = d_M[use]
  if len(np.unique(d)) < 2 or d_M.min() < 0:
    raise ValueError(f"d_M is {d_M.tolist()}; expected none below 0 and two different above it")
  x_M2 = np.stack([d, -d * (d if form == "bon" else np.log(d))], axis=1)
  rewards = np.concatenate([reward_M[None, use], draws_RM[:, use]]).T
  (alpha, beta), *_ = np.linalg.lstsq(x_M2, rewards, rcond=None)
  residual = reward_M[use] - x_M2 @ [alpha[0], beta[0]]
  falls = (beta > 0) & ((alpha > 0) | (form == "rl"))
  ratio = np.divide(alpha, beta, out=np.full_like(alpha, np.nan), where=falls)
  with np.errstate(over="ignore"):
    top = ratio / 2 if form == "bon" else np.exp(ratio - 1)
  top = np.where(np.isfinite(top), top, np.nan)  # β is almost 0, and d* overflows.

  def figure(values: np.ndarray, scale: str = "plain") -> dict:
    found = {"value": float(values[0]) if np.isfinite(values[0]) else None, "interval": None}
    if plan is None:
      return found
    if not np.isfinite(values[1:]).all() and not plan.why:
      return found | {"why": "it is not defined in all resamples"}
    return found | plan.interval(float(values[0]), values[1:], scale).report()

  summit = figure(top, "positive") | {"undefined": int(np.isnan(top[1:]).sum())}
  if summit["value"] is None:
    summit |= {"inside": False, "why": "the fitted form does not turn down"}
  else:
    summit["inside"] = bool(0 < summit["value"] <= d.max())
  return {
    "form": form,
    "alpha": figure(alpha),
    "beta": figure(beta),
    "residual": float(np.sqrt(np.mean(residual**2))),
    "peak": summit,
  }


def peak(
  ns: Sequence[int],
  true_M: npt.ArrayLike,
  draws_RM: npt.ArrayLike,
  conversations: float,
  *,
  level: float = 0.95,
) -> dict:
  """Tests whether the true reward peaks and falls again within the n's measured.

  It peaks if the drop from the best n to the largest n is above 0 with its whole interval. The best
  n is the one with the highest mean, chosen from the data, so an interval for this drop alone would
  be too narrow. Its interval is therefore part of a simultaneous band over the drops from all n
  (Montiel Olea and Plagborg-Møller 2019): drop_n ± c se_n, where se_n is the standard error
  and c the `level` quantile over resamples of max_n |drop*_n − drop_n| / se_n (* = in a resample).

  Args:
    ns: M numbers, increasing.
    true_M: [M], the mean true reward, relative to any one n.
    draws_RM: [R, M], the same in R >= 2 bootstrap resamples of prompts.
    conversations: the effective number of clusters (`interval.effective`) that the resamples are
      drawn from. Resamples of few clusters vary too little, so the band is widened below 30; below
      10 there is no verdict.
    level: of the band.

  Returns:
    {peaks: bool, or None with too few conversations or if the drop is the same in all resamples, n:
    the n with the highest mean, n_interval: of that n over resamples, drop: {value, interval} from
    there to the largest n; the interval is None, with `why`, if the drop is the same in all
    resamples; statement: the verdict in words}.

  Raises:
    ValueError: shapes do not fit, ns do not increase, or there are fewer than 2 n or resamples.
  """
  ns = [int(n) for n in ns]
  true_M, draws_RM = np.asarray(true_M, np.float64), np.asarray(draws_RM, np.float64)
  fits = true_M.shape == (len(ns),) and draws_RM.shape[1:] == true_M.shape
  if not fits or len(draws_RM) < 2 or len(ns) < 2 or sorted(set(ns)) != ns:
    raise ValueError(
      f"ns is {ns}, true_M {true_M.shape}, draws_RM {draws_RM.shape}; expected at least two n, "
      "increasing, a reward for each, and at least two resamples of them"
    )
  drop_M = true_M[:-1] - true_M[-1]
  draws_RD = draws_RM[:, :-1] - draws_RM[:, -1:]
  spread_M = draws_RD.std(axis=0)
  error_M = spread_M
  if conversations < FEW:
    # With C clusters the bootstrap's variance is too small by the factor (C − 1)/C, and its tails
    # are those of the normal distribution, where Student's t has longer ones.
    count = max(float(conversations), 2.0)
    wider = student(level, count - 1) / student(level, math.inf)
    error_M = error_M * math.sqrt(count / (count - 1)) * wider
  off_RM = np.abs(draws_RD - drop_M)
  # A spread that is rounding errors is that of prompts that are all alike.
  differs_M = spread_M > TINY * np.abs(true_M).max()
  off_RM = np.divide(off_RM, spread_M, out=np.zeros_like(off_RM), where=differs_M)
  c = float(np.quantile(off_RM.max(axis=1), level))
  best = int(np.argmax(true_M))
  tops = np.asarray(ns)[np.argmax(draws_RM, axis=1)]
  ends = np.quantile(tops, [(1 - level) / 2, (1 + level) / 2], method="nearest")
  value = float(drop_M[best]) if best < len(drop_M) else 0.0
  half = c * float(error_M[best]) if best < len(drop_M) else 0.0
  figure = {"value": value, "interval": [value - half, value + half]}
  alike = value > 0 and not differs_M[best]
  if alike:
    figure |= {"interval": None, "why": _ALIKE}
  peaks = value - half > 0
  drop = f"the drop from there to n = {ns[-1]} is {value:.3g} [{value - half:.3g}, "
  drop += f"{value + half:.3g}]"
  if conversations < _CONVERSATIONS:
    peaks = None
    statement = f"{conversations:.3g} conversations do not tell whether the true reward peaks"
    statement += f"; a curve wants {_CONVERSATIONS}"
  elif alike:
    peaks = None
    statement = f"the true reward is highest at n = {ns[best]}, but whether it peaks is not known: "
    statement += f"the drop from there to n = {ns[-1]} is {value:.3g}, and {_ALIKE}"
  elif peaks:
    statement = f"the true reward peaks at n = {ns[best]} ({drop})"
  else:
    statement = f"no peak of the true reward within n <= {ns[-1]}"
    if half:
      statement += f" is shown: it is highest at n = {ns[best]}, and {drop}"
  return {
    "peaks": peaks,
    "n": ns[best],
    "n_interval": [int(n) for n in ends],
    "drop": figure,
    "statement": statement,
  }


def _relative(x_PM: np.ndarray) -> np.ndarray:
  """Subtracts the value at n = 1. Differences as small as rounding errors become 0, so that a
  constant curve has no peak in its last bit."""
  change_PM = x_PM - x_PM[:, :1]
  return np.where(np.abs(change_PM) <= 1e-12 * np.abs(x_PM).max(), 0.0, change_PM)
