"""torch's values and gradients of its losses on sequences, in float64, for tests/test_losses_language.py.

    python tests/references/language_torch.py      # in an environment with torch (made with 2.13, CPU); writes language_torch.npz beside it

Inputs are float32 numbers, so that the tests feed exactly these; gradients are of the sum of values.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(2026)
# Confident and unsure readings, repeats, silence, all frames needed (5 labels, one repeat, 6 frames), and too few (example 5).
LABELS = [[1, 2, 3, 4, 5], [2, 2, 6, 6, 1], [3], [], [1, 1, 2, 3, 4], [4, 4, 4, 4, 4]]
inputs = {
    "ctc_logits": (rng.normal(size=(6, 12, 7)) * np.array([0.1, 1, 3, 10, 1, 1])[:, None, None]).astype(np.float32),
    "ctc_labels": np.array([row + [-100] * (5 - len(row)) for row in LABELS], np.int32),
    "ctc_frames": np.array([12, 10, 12, 7, 6, 8], np.int32),
    "tokens": (2 * rng.normal(size=(3, 5, 9))).astype(np.float32),
    "token_labels": np.where(rng.random((3, 5)) < 0.3, -100, rng.integers(0, 9, (3, 5))).astype(np.int32),
    "class_weights": rng.uniform(0.2, 2, 9).astype(np.float32),
    "teacher": (2 * rng.normal(size=(3, 5, 9))).astype(np.float32),
}
t = {name: torch.tensor(value, dtype=torch.float64 if value.dtype == np.float32 else torch.int64) for name, value in inputs.items()}
smoothing, temperature = float(np.float32(0.1)), 3.0


def ctc(logits: torch.Tensor, blank: int = 0, zero_infinity: bool = False) -> torch.Tensor:
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    counts = (t["ctc_labels"] >= 0).sum(-1)
    labels = t["ctc_labels"].clamp(min=0)
    return F.ctc_loss(log_probs, labels, t["ctc_frames"], counts, blank=blank, reduction="none", zero_infinity=zero_infinity)


def tokens(logits: torch.Tensor, reduction: str) -> torch.Tensor:
    flat, labels = logits.reshape(-1, 9), t["token_labels"].ravel()
    return F.cross_entropy(flat, labels, weight=t["class_weights"], label_smoothing=smoothing, reduction=reduction)


def distillation(logits: torch.Tensor) -> torch.Tensor:
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (logits, t["teacher"]))
    return temperature**2 * F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)


LOSSES = {
    "ctc": ("ctc_logits", lambda z: ctc(z, zero_infinity=True)),
    "tokens": ("tokens", lambda z: tokens(z, "none").reshape(3, 5)),
    "tokens_mean": ("tokens", lambda z: tokens(z, "mean")),
    "distillation": ("tokens", distillation),
}


def main() -> None:
    results = dict(inputs, smoothing=smoothing, temperature=temperature, ctc_inf=ctc(t["ctc_logits"]).numpy())
    for name, (argument, loss) in LOSSES.items():
        leaf = t[argument].clone().requires_grad_()
        value = loss(leaf)
        value.sum().backward()
        results[f"{name}.value"], results[f"{name}.grad"] = value.detach().numpy(), leaf.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), torch_version=np.array(torch.__version__), **results)


if __name__ == "__main__":
    main()
