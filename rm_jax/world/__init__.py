from rm_jax.world.world import World
