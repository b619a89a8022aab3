"""The reward model of text: built from a config, its parameters read, its scores, its export."""
