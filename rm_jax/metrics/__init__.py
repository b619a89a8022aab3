"""Pure functions of scores and labels, in float64 on the host: how often the model is right, how it
ranks, whether its scores mean probabilities, have drifted, or mislead when they are maximised."""
