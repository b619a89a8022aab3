"""Best-of-n curves: every subset by brute force, planted worlds whose peak is known by formula."""

import itertools
import math

import numpy as np
import pytest

from rm_jax.metrics.best_of_n import best_of_n, best_of_n_curve, fit_gao, kl, peak, weights
from rm_jax.metrics.interval import Resampling

NS = [1, 2, 4, 8, 16, 32, 64]
# Share of exploits among candidates, and by how much an exploit's true reward is lower.
SHARE, LOSS = 1 / 64, 3.0


def brute(proxy, true, n):
  """Means over all subsets of n, where each candidate that ties for the best proxy is as likely."""
  found = []
  for chosen in itertools.combinations(range(len(proxy)), n):
    best = max(proxy[i] for i in chosen)
    found.append((best, np.mean([true[i] for i in chosen if proxy[i] == best])))
  return np.mean(found, axis=0)


@pytest.mark.parametrize("ties", [False, True])
def test_against_every_subset(ties):
  rng = np.random.default_rng(0)
  proxy, true = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
  if ties:
    proxy = np.round(proxy)
  ns = [1, 2, 3, 5, 7]
  got_proxy, got_true, tied = best_of_n(proxy, true, ns)
  for p, (m, n) in itertools.product(range(5), enumerate(ns)):
    assert (got_proxy[p, m], got_true[p, m]) == pytest.approx(brute(proxy[p], true[p], n))
  assert tied == (5 if ties else 0)


def test_equal_values_of_neighbouring_prompts_are_no_tie():
  proxy = [[1.0, 2.0], [2.0, 2.0], [2.0, 3.0]]
  _, true, tied = best_of_n(proxy, [[0.0, 10.0], [20.0, 40.0], [0.0, 70.0]], [2])
  assert true[:, 0].tolist() == [10, 30, 70]
  assert tied == 1


def test_weights_are_chances_up_to_a_thousand_candidates():
  got = weights([1, 2, 700, 1024], 1024)
  assert got.sum(axis=1) == pytest.approx(1, rel=1e-14)
  assert got[0] == pytest.approx(1 / 1024, rel=1e-10)
  assert (got[1, 0], got[3, :-1].max(), got[3, -1]) == (0, 0, 1)
  for i in (700, 900, 1024):
    assert got[2, i - 1] == pytest.approx(math.comb(i - 1, 699) / math.comb(1024, 700), rel=1e-9)


def test_estimate_is_that_of_fresh_candidates():
  """The mean of the best of 4 normals, estimated from 20 candidates for each of 4,000 prompts."""
  rng = np.random.default_rng(0)
  q = rng.normal(size=(4000, 20))
  proxy, true, _ = best_of_n(q, q, [4])
  assert proxy.mean() == pytest.approx(best_normal(4), abs=4 * proxy.std() / math.sqrt(4000))
  assert np.array_equal(proxy, true)
  fresh = rng.normal(size=(4000, 4)).max(axis=1)
  assert proxy.std() < 0.6 * fresh.std()  # It needs fewer prompts than n fresh candidates.


def test_kl():
  assert [kl(1), kl(2)] == [0, pytest.approx(math.log(2) - 0.5)]
  # Of two candidates without ties, the better has the density 2u, and its KL is ∫ 2u log 2u du.
  u = (np.arange(100_000) + 0.5) / 100_000
  assert kl(2) == pytest.approx(np.mean(2 * u * np.log(2 * u)), abs=1e-8)
  with pytest.raises(ValueError, match="n is 0"):
    kl(0)


def test_gaos_forms_are_found_with_their_peaks():
  d = np.sqrt([kl(n) for n in [1, *range(2, 200, 7)]])
  found = fit_gao(d, d * (0.9 - 0.3 * d))
  assert found["form"] == "bon"
  assert (found["alpha"]["value"], found["beta"]["value"]) == pytest.approx((0.9, 0.3))
  assert found["peak"]["value"] == pytest.approx(1.5)
  assert found["peak"]["inside"]
  assert found["residual"] == pytest.approx(0, abs=1e-12)
  rl = d * (0.9 - 0.3 * np.log(np.where(d > 0, d, 1)))
  found = fit_gao(d, rl, form="rl")
  assert found["form"] == "rl"
  assert (found["alpha"]["value"], found["beta"]["value"]) == pytest.approx((0.9, 0.3))
  # The root of d/dd [d (α − β log d)] = 0.
  assert found["peak"]["value"] == pytest.approx(math.exp(2))
  assert not found["peak"]["inside"]
  found = fit_gao(d, d * (0.9 + 0.1 * d))
  assert found["peak"]["value"] is None
  assert "does not turn down" in found["peak"]["why"]


def test_gaos_intervals_are_those_of_the_resamples():
  rng = np.random.default_rng(0)
  d = np.linspace(0, 2, 9)
  draws = [d * (a - b * d) for a, b in rng.normal([1, 0.4], [0.1, 0.02], (3000, 2))]
  plan = Resampling(range(40), resamples=3000)
  found = fit_gao(d, d * (1 - 0.4 * d), draws_RM=draws, plan=plan)
  assert found["alpha"]["interval"] == pytest.approx([1 - 0.196, 1 + 0.196], abs=0.02)
  assert found["beta"]["interval"] == pytest.approx([0.4 - 0.039, 0.4 + 0.039], abs=0.004)
  low, high = found["peak"]["interval"]
  assert low < 1.25 < high
  draws[0] = d * (1 + 0.1 * d)
  found = fit_gao(d, d * (1 - 0.4 * d), draws_RM=draws, plan=plan)
  assert (found["peak"]["interval"], found["peak"]["undefined"]) == (None, 1)


def best_normal(n):
  """The mean of the largest of n standard normals, ∫ x n φ(x) Φ(x)ⁿ⁻¹ dx."""
  x = np.linspace(-9, 9, 20_001)
  density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
  return float((x * n * density * (np.cumsum(density) * (x[1] - x[0])) ** (n - 1)).mean() * 18)


def true_of_exploit(n):
  """The true reward: of the best normal if none of n is an exploit, else of an exploit, −LOSS."""
  none = (1 - SHARE) ** n
  return none * best_normal(n) - LOSS * (1 - none)


def world(seed, kind, prompts=60, candidates=128):
  rng = np.random.default_rng(seed)
  quality = rng.normal(size=(prompts, candidates))
  if kind == "light":  # The error's tail is light: there is no peak.
    return quality + rng.normal(size=quality.shape), quality
  if kind == "noise":  # The proxy is noise: the curve is flat.
    return rng.normal(size=quality.shape), quality
  exploit = rng.random(quality.shape) < SHARE
  return quality + 100 * exploit, np.where(exploit, -LOSS, quality)


@pytest.mark.slow
def test_planted_worlds_are_told_apart():
  """150 audits each: none peaks with a light-tailed error; exploits give the formula's peak."""
  truth = [true_of_exploit(n) - true_of_exploit(1) for n in NS]
  assert NS[int(np.argmax(truth))] == 8
  said = {kind: [] for kind in ("light", "exploit")}
  for kind, seed in itertools.product(said, range(150)):
    found = best_of_n_curve(*world(seed, kind), NS, resamples=100, seed=seed)["peak"]
    said[kind].append(found)
  assert sum(f["peaks"] for f in said["light"]) == 0
  assert {f["statement"] for f in said["light"]} == {"no peak of the true reward within n <= 64"}
  assert all(f["peaks"] for f in said["exploit"])
  assert {f["n"] for f in said["exploit"]} <= {4, 8, 16}
  assert sum(f["n"] == 8 for f in said["exploit"]) > 0.7 * 150
  # The band covers the true drop from the chosen n, whichever that is.
  drop = {n: value - truth[-1] for n, value in zip(NS, truth, strict=True)}
  held = [
    f["drop"]["interval"][0] <= drop[f["n"]] <= f["drop"]["interval"][1] for f in said["exploit"]
  ]
  assert np.mean(held) > 0.9
  assert "peaks at n = 8 (the drop from there to n = 64 is" in said["exploit"][0]["statement"]


def test_a_flat_curve_is_not_said_to_peak_because_its_highest_point_was_chosen():
  """400 curves that are flat in truth: 95 % bands, against intervals that ignore the choice."""
  honest, naive = 0, 0
  for seed in range(400):
    proxy, true = world(seed, "noise", candidates=65)
    _, curve, _ = best_of_n(proxy, true, NS)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(60, np.full(60, 1 / 60), size=200) @ curve / 60
    found = peak(NS, curve.mean(axis=0), draws, 60)
    honest += found["peaks"]
    drop = draws[:, NS.index(found["n"])] - draws[:, -1]
    naive += np.quantile(drop, 0.025) > 0
  assert honest / 400 <= 0.05
  assert naive > honest


def test_of_few_prompts_nothing_is_said_and_of_ten_what_is_said_is_mostly_true():
  """200 flat curves of 10 prompts each. With 9 prompts even a clear peak gets no verdict."""
  wrong = 0
  for seed in range(200):
    proxy, true = world(seed, "noise", prompts=10, candidates=16)
    wrong += best_of_n_curve(proxy, true, NS[:5], resamples=200, seed=seed)["peak"]["peaks"]
  assert wrong / 200 <= 0.1
  found = best_of_n_curve(*world(0, "exploit", prompts=9), NS, resamples=100)["peak"]
  assert found["peaks"] is None
  assert found["statement"].startswith("9 conversations do not tell whether the true reward peaks")
  # Two prompts of one conversation are one cluster.
  clusters = [i // 2 for i in range(18)]
  found = best_of_n_curve(*world(0, "exploit", prompts=18), NS, resamples=100, clusters=clusters)
  assert found["peak"]["peaks"] is None


def test_a_peak_that_is_not_shown_is_no_finding_of_none():
  curve, draws = np.array([0.0, 1.0, 0.9]), np.array([[0.0, 1.0, 0.2], [0.0, 1.0, 1.6]])
  found = peak([1, 2, 4], curve, draws, 60)
  assert found["peaks"] is False
  assert found["statement"].startswith(
    "no peak of the true reward within n <= 4 is shown: it is highest at n = 2, and the drop from "
    "there to n = 4 is 0.1 ["
  )


@pytest.mark.parametrize("unit", [1.0, 0.1, 1e9])
def test_a_drop_that_is_the_same_for_all_prompts_is_no_certainty(unit):
  proxy = np.tile(np.arange(16.0), (12, 1))
  true = np.tile(-np.abs(np.arange(16.0) - 9) * unit / 3, (12, 1))
  found = best_of_n_curve(proxy, true, [1, 2, 4, 8, 16], resamples=100)
  peaked = found["peak"]
  assert peaked["peaks"] is None
  assert peaked["drop"]["value"] > 0
  assert peaked["drop"]["interval"] is None
  assert "how conversations differ is unknown" in peaked["drop"]["why"]
  assert "whether it peaks is not known" in peaked["statement"]
  assert found["true"][2]["interval"] is None  # as of each point
  few = best_of_n_curve(proxy[:6], true[:6], [1, 2, 4, 8, 16], resamples=100)["peak"]
  assert (few["peaks"], few["drop"]["interval"]) == (None, None)
  # Where nothing falls there is nothing to be unsure of.
  rises = best_of_n_curve(proxy, proxy, [1, 2, 4, 8, 16], resamples=100)["peak"]
  assert (rises["peaks"], rises["drop"]["interval"]) == (False, [0.0, 0.0])


def test_curves_against_hand_and_report():
  proxy, true = world(0, "light", prompts=40)
  found = best_of_n_curve(proxy, true, NS[1:], clusters=[i // 2 for i in range(40)])
  assert found["n"] == NS
  _, curve, _ = best_of_n(proxy, true, NS)
  for m, figure in enumerate(found["true"]):
    change = curve[:, m] - true.mean(axis=1)
    assert figure["value"] == pytest.approx(change.mean(), abs=1e-12)
    clustered = change.reshape(20, 2).mean(axis=1)
    half = 1.96 * clustered.std() / math.sqrt(20)
    low, high = figure["interval"]
    assert (low, high) == pytest.approx((figure["value"] - half, figure["value"] + half), abs=0.04)
  assert (found["kl_is"], found["tied_prompts"], found["prompts"]) == ("exact", 0, 40)
  assert found["kl"] == [kl(n) for n in NS]
  assert found["fits"]["proxy"]["bon"]["alpha"]["value"] > 0
  assert best_of_n_curve(np.round(proxy), true, NS)["kl_is"] == "an upper bound"
  # The mean of a constant reward varies in its last bit only.
  constant = best_of_n_curve(proxy, np.full_like(true, 0.1), NS, resamples=50)
  assert not constant["peak"]["peaks"]
  assert {f["value"] for f in constant["true"]} == {0.0}


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda p, t: best_of_n(p, t, [1, 9]), r"ns is \[1, 9\]; expected numbers from 1 to the 8"),
    (lambda p, t: best_of_n(p, t, []), r"ns is \[\]"),
    (lambda p, t: best_of_n(p, t[:, :7], [1]), r"true_PN \(3, 7\)"),
    (lambda p, t: best_of_n(p * math.nan, t, [1]), "proxy_PN has 24 not finite"),
    (lambda p, t: best_of_n_curve(p, t, [1, 2, 8]), "at least 3 above 1"),
    (lambda p, t: best_of_n_curve(p, t, [1, 4, 2, 8]), "expected increasing"),
    (lambda p, t: best_of_n_curve(p, t, [2, 4, 8], clusters=[1] * 3), r"1 cluster\(s\)"),
    (lambda p, t: best_of_n_curve(p, t, [2, 4, 8], resamples=0), "resamples is 0"),
    (lambda p, t: best_of_n_curve(p, t, [2, 4, 8], resamples=1), "resamples is 1; .* at least 2"),
    (lambda p, t: fit_gao([0, 1, 1], [0, 1, 1]), "two different above it"),
    (lambda p, t: fit_gao([0, 1, 2], [0, 1]), "expected one M"),
    (lambda p, t: fit_gao([0, 1, 2], [0, 1, math.inf]), "not finite"),
    (lambda p, t: fit_gao([0, 1, 2], [0, 1, 1], form="ppo"), "form is 'ppo'"),
    (lambda p, t: peak([1, 2], [0.0, 1.0], [[0.0, 1.0]], 60), "at least two resamples"),
  ],
)
def test_refusals(call, message):
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match=message):
    call(rng.normal(size=(3, 8)), rng.normal(size=(3, 8)))
