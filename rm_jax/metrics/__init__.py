"""Pure functions of scores and labels, in float64 on the host: how often the model is right."""
