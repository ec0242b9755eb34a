"""Strict by default: no silent rank promotion, float32 matmuls in full, two CPU devices as the CLI has them."""

import os
import secrets
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import pytest

try:
    from jax._src import lru_cache
except ImportError:  # JAX's own business, so it may move
    lru_cache = None

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

QUICK_COMPILES = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def pytest_configure(config: pytest.Config) -> None:
    """What XLA has compiled once, by a test or by a command that a test started, is kept: most of the suite's time is compiling."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # not the user's: plans of lanes are remembered there
    if config.option.markexpr == "not slow" and "XLA_FLAGS" not in os.environ:
        # Most of the time is compiling, and so it is a fifth. `pytest -m slow` compiles as users do; so does `XLA_FLAGS= pytest`.
        os.environ["XLA_FLAGS"] = known(QUICK_COMPILES)
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    # Processes that tests start write entries in place, so each worker's have a folder of their own.
    own = str(config.cache.mkdir(f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"))
    settings = {
        "jax_compilation_cache_dir": own,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_persistent_cache_enable_xla_caches": "none",  # or the key would hold the folder's name
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    if hasattr(getattr(lru_cache, "LRUCache", None), "put"):
        lru_cache.LRUCache.put = put
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def lossopt(monkeypatch, capsys, tmp_path):
    """The command in this process, since it takes seconds to start another; some tests below do start one."""
    from lossopt_jax.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lossopt", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return Done(exited.value.code or 0, *capsys.readouterr())

    return run


def known(flags: dict[str, object]) -> str:
    """Those flags that this jaxlib has: they come and go, and an unknown one ends the process that meets it in XLA_FLAGS."""
    code = f"import jax\nprogram = jax.jit(lambda x: x).lower(1.0)\nfor name, value in {flags}.items():\n"
    code += "  try: program.compile({name: value})\n  except jax.errors.JaxRuntimeError: pass\n"
    code += "  else: print(f'--{name}={value}')"
    return " ".join(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def put(self, key: str, value: bytes) -> None:
    """JAX writes an entry where another worker may be reading it; this one appears whole."""
    new = self.path / f"{secrets.token_hex(8)}.new"
    new.write_bytes(value)
    new.replace(self.path / f"{key}-cache")
