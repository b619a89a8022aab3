"""Pure functions of scores and labels, in float64 on the host, each with its interval.

They say how often a model is right, how well it ranks, whether its scores are calibrated, whether
they have drifted, and whether maximising them lowers the true reward.
"""
