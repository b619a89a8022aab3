"""Policies: text sampled from a decoder, its rewards, and updates towards higher ones.

`optimise` takes a turn: `rollout` samples responses (`generate`, with the keys and values of
`cache`), turns them into text (`text`) and has them rewarded; `experience` makes advantages of the
rewards and lays the responses into rows; `update` takes steps on these. `sft` takes
the same steps on given texts. The arithmetic stands apart: `kl`, `advantages` and `surrogate` are
pure functions of arrays.
"""
