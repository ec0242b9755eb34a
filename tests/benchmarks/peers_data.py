"""What the contenders of peers.py share: workloads, data and batches, in NumPy alone, and how a contender talks to it."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    lanes: int
    steps: int
    batch: int
    momentum: bool  # SGD with momentum, else AdamW


WORKLOADS = {
    "mlp": Workload(64, 500, 64, False),
    "small": Workload(256, 200, 16, False),
    "cnn": Workload(32, 300, 64, True),
    "rnn": Workload(32, 100, 32, False),
}
WIDTHS = {"mlp": (64, 64), "small": (16, 16)}
WINDOW, EMBEDDED, HIDDEN = 32, 32, 64  # of the character model


def data(workload: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Inputs, integer labels and how many classes there are."""
    if workload == "rnn":
        from pydoc_data.topics import topics

        text = "".join(topics[name] for name in sorted(topics))[:100_000]
        letters = sorted(set(text))
        codes = np.searchsorted(letters, list(text)).astype(np.int32)
        at = np.arange(0, len(codes) - WINDOW - 1, WINDOW)[:, None] + np.arange(WINDOW)[None]
        return codes[at], codes[at + 1], len(letters)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return (x.reshape(-1, 8, 8, 1) if workload == "cnn" else x), y.astype(np.int32), 10


def rates(workload: str, lanes: int | None = None) -> np.ndarray:
    """The learning rate of each lane."""
    low, high = (1e-3, 0.1) if WORKLOADS[workload].momentum else (1e-4, 1e-2)
    return np.geomspace(low, high, lanes or WORKLOADS[workload].lanes).astype(np.float32)


def batches(workload: str, examples: int) -> np.ndarray:
    """Which examples each step sees, [steps, b]; all lanes see the same."""
    w = WORKLOADS[workload]
    return np.random.default_rng(0).integers(0, examples, (w.steps, w.batch)).astype(np.int32)


def serve(prepare: Callable[[str, np.ndarray], Callable[[], tuple[float, float]]]) -> None:
    """Prepare this process's part of the lanes, then run it whenever told: see `Worker` in peers.py.

    prepare: (workload, learning rates) -> a function that runs them and gives (share of them that was run, mean loss).
    """
    workload, index, count = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    lanes = int(sys.argv[5]) if len(sys.argv) > 5 else None
    try:
        data(workload)  # the libraries that hold it take seconds to import
        began = time.perf_counter()
        run = prepare(workload, rates(workload, lanes)[index::count])
    except ImportError as error:
        print("missing", error, flush=True)
        return
    print("ready", time.perf_counter() - began, flush=True)
    for _ in sys.stdin:
        print(*run(), flush=True)
