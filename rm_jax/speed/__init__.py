"""How fast: the work of a step, measured speed, and plans for devices that are elsewhere."""
