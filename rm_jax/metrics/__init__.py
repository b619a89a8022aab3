"""Metrics of scores, labels and texts, in float64 on the host, and their confidence intervals.

They say how often a model is right, how well it ranks, whether its scores are calibrated, whether
they have drifted, whether maximising them lowers the true reward, and how far annotators agree.
"""
