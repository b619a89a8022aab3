"""Mistral (Jiang et al. 2023): no biases, and a sliding window in all layers or in none."""

from rm_jax.pretrained.families.family import Family, read_decoder

FAMILY = Family(model_type="mistral", class_prefix="Mistral", backbone=read_decoder)
