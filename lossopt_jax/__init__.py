"""Losses, optimizers and learning-rate schedules for JAX in which every number is traced.

The public names stand in `__init__.pyi`. They load on first use, so that `lossopt --help` does not wait for JAX.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = _version("lossopt_jax")
