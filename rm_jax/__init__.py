"""rm_jax: reward models from a pretrained transformer and human judgements, in JAX."""
