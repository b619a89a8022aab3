"""The folder of a training run: its lock and config, its state, its checkpoints."""
