"""Policies: text sampled from a decoder, its rewards, and updates towards higher ones.

`generate` samples, `rollout` turns samples into texts with rewards, `experience` into advantages,
`update` takes a step, and `optimise` does all of this in turn. The arithmetic is apart from arrays
on devices: `kl`, `advantages` and `surrogate` are pure functions.
"""
