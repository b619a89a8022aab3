"""Checkpoints of pretrained models, in and out: safetensors, GGUF, the hub; their tokenizers."""
