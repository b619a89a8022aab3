"""A run's folder: whose it is, what a checkpoint holds, and how it is written and read back."""
