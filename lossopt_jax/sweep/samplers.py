"""Points of the unit cube to draw trials from: (count, dimensions, seed) -> [count, dimensions]; the same seed gives the same points."""

import math

import numpy as np

__all__ = ["halton", "random", "sobol"]


def sobol(count: int, dimensions: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence: each power of 2 of them covers the cube evenly. Owen (1998)."""
    from scipy.stats import qmc  # half a second to import

    # Drawn by the power of 2: of any other count scipy warns, though the first points of a sequence are what they are.
    return qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed)).random_base2(max(0, math.ceil(math.log2(count))))[:count]


def halton(count: int, dimensions: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Halton sequence: even for any count, in some tens of dimensions. Owen (2017, arXiv:1706.02808)."""
    from scipy.stats import qmc

    return qmc.Halton(dimensions, scramble=True, rng=np.random.default_rng(seed)).random(count)


def random(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Independent points. Bergstra & Bengio (2012)."""
    return np.random.default_rng(seed).random((count, dimensions))
