"""Training: the objective, the step, the run and its loop, the optimiser, the data it reads."""
