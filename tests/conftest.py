"""Strict by default: no silent rank promotion, float32 matmuls in full, two CPU devices as the CLI has them."""

import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """What XLA has compiled once, by a test or by a command that a test started, is kept: most of the suite's time is compiling."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # not the user's: plans of lanes are remembered there
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    # A folder to each worker: JAX does not write its entries atomically.
    kept = config.cache.mkdir(f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}")  # type: ignore[union-attr]
    settings = {
        "jax_compilation_cache_dir": str(kept),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
