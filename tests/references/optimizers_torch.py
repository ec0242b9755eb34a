"""100-step trajectories of torch.optim on a small non-convex problem, kept in optimizers_torch.npz beside this file.

Made with torch 2.13.0 on CPU: `python tests/references/optimizers_torch.py` in an environment that has torch and numpy.
The problem is a tanh net 5-7-3 with mean squared error, all in float32; the learning rate falls linearly to half over the 100 steps.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
STEPS = 100
SAMPLED = (1, 2, 3, 5, 10, 20, 50, 100)
SHAPES = {"kernel_0": (5, 7), "bias_0": (7,), "kernel_1": (7, 3), "bias_1": (3,)}

# name -> (class in torch.optim, its arguments, learning rate). Rates are where rounding does not grow: at 0.05, Adafactor and NAdam
# oscillate, and two float32 programs that agree to 2e-7 at step 20 are 5e-2 apart at step 50.
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "sgd": ("SGD", {}, 0.2),
    "sgd_decay": ("SGD", {"weight_decay": 0.05}, 0.2),
    "momentum": ("SGD", {"momentum": 0.9}, 0.05),
    "momentum_decay": ("SGD", {"momentum": 0.8, "weight_decay": 0.05}, 0.05),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, 0.05),
    "nesterov_decay": ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}, 0.05),
    "rmsprop": ("RMSprop", {"alpha": 0.9}, 0.005),
    "rmsprop_default": ("RMSprop", {}, 0.005),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}, 0.002),
    "rmsprop_centered": ("RMSprop", {"centered": True}, 0.002),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.9, "eps": 1e-3}, 0.001),
    "adagrad": ("Adagrad", {}, 0.1),
    "adagrad_initial": ("Adagrad", {"initial_accumulator_value": 0.1, "eps": 1e-3}, 0.1),
    "adadelta": ("Adadelta", {}, 1.0),
    "adam": ("Adam", {}, 0.02),
    "adam_eps": ("Adam", {"betas": (0.8, 0.9), "eps": 1e-2}, 0.05),
    "adamw": ("AdamW", {}, 0.02),
    "adamw_decay": ("AdamW", {"weight_decay": 0.5}, 0.02),
    "nadam": ("NAdam", {}, 0.02),
    "nadam_eps": ("NAdam", {"betas": (0.8, 0.9), "eps": 1e-2, "momentum_decay": 0.1}, 0.02),
    "nadamw": ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, 0.02),
    "adamax": ("Adamax", {}, 0.02),
    "amsgrad": ("Adam", {"amsgrad": True}, 0.02),
    "amsgrad_short": ("Adam", {"amsgrad": True, "betas": (0.8, 0.9), "eps": 1e-3}, 0.02),
    "radam": ("RAdam", {}, 0.02),
    "radam_short": ("RAdam", {"betas": (0.8, 0.95), "eps": 1e-3}, 0.02),
    "adafactor": ("Adafactor", {}, 0.02),
    "adafactor_decay": ("Adafactor", {"weight_decay": 0.1, "beta2_decay": -0.6, "d": 1.2}, 0.02),
    "muon": ("Muon", {"weight_decay": 0.1}, 0.02),
    "muon_rms": ("Muon", {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw", "momentum": 0.9}, 0.02),
    "muon_bfloat16": ("Muon", {"weight_decay": 0.1}, 0.02),
}


def problem() -> dict[str, np.ndarray]:
    """inputs [16, 5], targets [16, 3] and the four parameters, kernels as [in, out]."""
    random = np.random.default_rng(2026)
    inputs = random.normal(size=(16, 5))
    targets = np.sin(inputs @ random.normal(size=(5, 3))) + 0.1 * random.normal(size=(16, 3))
    params = {name: random.normal(size=shape) / np.sqrt(shape[0]) for name, shape in SHAPES.items()}
    return {name: value.astype(np.float32) for name, value in {"inputs": inputs, "targets": targets, **params}.items()}


def learning_rate(peak: float, step: int) -> float:
    """What the update number `step`, from 0, uses."""
    return peak * (1 - 0.5 * step / STEPS)


def trajectories() -> dict[str, np.ndarray]:
    """name -> parameters [len(SAMPLED), 66] after each sampled step, leaves in the order of SHAPES, each flattened as [in, out]."""
    return {name: _trajectory(name, *case) for name, case in CASES.items()}


def _trajectory(name: str, kind: str, arguments: dict[str, Any], peak: float) -> np.ndarray:
    import torch

    data = {key: torch.tensor(value) for key, value in problem().items()}
    # torch keeps kernels as [out, in], and Muon's scale depends on which is which.
    params = {
        key: data[key].T.contiguous().requires_grad_(True) if data[key].ndim == 2 else data[key].requires_grad_(True) for key in SHAPES
    }
    make = getattr(torch.optim, kind)
    if kind == "Muon":
        matrices, vectors = ([p for p in params.values() if (p.ndim == 2) is wanted] for wanted in (True, False))
        optimizers = [make(matrices, lr=peak, **arguments), torch.optim.AdamW(vectors, lr=peak, weight_decay=arguments["weight_decay"])]
    else:
        optimizers = [make(list(params.values()), lr=peak, **arguments)]
    sampled = []
    with _float32_newton_schulz(name in ("muon", "muon_rms")):
        for step in range(STEPS):
            hidden = torch.tanh(data["inputs"] @ params["kernel_0"].T + params["bias_0"])
            loss = torch.mean((hidden @ params["kernel_1"].T + params["bias_1"] - data["targets"]) ** 2)
            for optimizer in optimizers:
                optimizer.zero_grad()
                optimizer.param_groups[0]["lr"] = learning_rate(peak, step)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            if step + 1 in SAMPLED:
                sampled.append(np.concatenate([p.detach().numpy().T.ravel() for p in params.values()]))
    return np.stack(sampled)


@contextmanager
def _float32_newton_schulz(wanted: bool) -> Iterator[None]:
    """torch's Muon rounds to bfloat16 before it orthogonalises; without that rounding its definition can be compared to 1e-4."""
    import torch

    rounded = torch.Tensor.bfloat16
    if wanted:
        torch.Tensor.bfloat16 = lambda self: self.clone()  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = rounded  # type: ignore[method-assign]


if __name__ == "__main__":
    import torch

    about = json.dumps({"torch": torch.__version__, "steps": STEPS, "sampled": SAMPLED, "cases": CASES})
    np.savez_compressed(PATH, about=np.array(about), **{f"problem.{k}": v for k, v in problem().items()}, **trajectories())
    print(f"{PATH}: {PATH.stat().st_size} bytes, torch {torch.__version__}")
