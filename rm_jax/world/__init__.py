"""A generated world of prompts, responses and judges, in which any text's true reward is known."""

from rm_jax.world.tokenizer import make_tokenizer, restore
from rm_jax.world.world import Candidate, World, best_reachable

__all__ = ["Candidate", "World", "best_reachable", "make_tokenizer", "restore"]
