"""Strict by default: no silent rank promotion, float32 matmuls in full, two CPU devices as the CLI has them."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
