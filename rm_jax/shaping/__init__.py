"""Between a model's raw score and the score that reinforcement learning reads.

`limits` says which responses and scores are not to be trusted: those that a declared limit catches,
and scores outside the range of a reference's scores. Code that normalises or clips scores belongs
here, too.
It needs scores and texts alone, so that both the API and a policy's training can use it.
"""
