"""The arrays of losses.py, the same for all contenders: (outputs, targets) of each loss by name, over 1 MB each."""

import zlib

import numpy as np

N = 2**23  # numbers of an elementwise loss: 32 MB, more than the caches hold
ROWS, CLASSES = 4096, 1000


def arrays(name: str):
    rng = np.random.default_rng(zlib.crc32(name.encode()))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def labels(rows: int = ROWS, classes: int = CLASSES) -> np.ndarray:
        return rng.integers(0, classes, rows).astype(np.int32)

    def probabilities(rows: int = ROWS, classes: int = CLASSES) -> np.ndarray:
        q = np.exp(normal(rows, classes))
        return q / q.sum(-1, keepdims=True)

    def signs(n: int) -> np.ndarray:
        return np.where(rng.random(n) < 0.5, -1, 1).astype(np.int32)

    if name in ("mse", "mae", "huber", "smooth_l1", "log_cosh"):
        return normal(N), normal(N)
    if name == "poisson_nll":
        return normal(N), rng.poisson(2.0, N).astype(np.float32)
    if name in ("binary_cross_entropy", "binary_focal"):
        return normal(N), (rng.random(N) < 0.5).astype(np.float32)
    if name == "hinge":
        return normal(N), signs(N).astype(np.float32)
    if name in ("cross_entropy, distribution", "kl_divergence", "sparsemax"):
        return normal(ROWS, CLASSES), probabilities()
    if name == "cross_entropy, 50257 classes":
        return normal(128, 50257), labels(128, 50257)
    if name == "multilabel_soft_margin":
        return normal(ROWS, CLASSES), (rng.random((ROWS, CLASSES)) < 0.5).astype(np.float32)
    if name == "nll":
        return np.log(probabilities()), labels()
    if name == "cosine":
        return normal(8192, 128), normal(8192, 128)
    if name == "cosine_embedding":
        return (normal(8192, 128), normal(8192, 128)), signs(8192)
    if name == "triplet":
        return (normal(8192, 128), normal(8192, 128), normal(8192, 128)), None
    if name == "margin_ranking":
        return (normal(N), normal(N)), signs(N)
    if name == "listwise_softmax":
        return normal(ROWS, 256), rng.integers(0, 4, (ROWS, 256)).astype(np.float32)
    if name == "dice":
        return normal(4, 256, 256, 8), rng.integers(0, 8, (4, 256, 256)).astype(np.int32)
    if name == "binary_dice":
        return normal(16, 256, 256), rng.integers(0, 2, (16, 256, 256)).astype(np.int32)
    if name == "ctc":
        return normal(32, 200, 64), (rng.integers(1, 64, (32, 30)).astype(np.int32), np.full(32, 200, np.int32))
    return normal(ROWS, CLASSES), labels()
