"""torch's values and gradients of the losses it has, in float64, for tests/test_losses_*.py.

    python tests/references/losses_torch.py      # in an environment with torch (made with 2.13, CPU); writes losses_torch.npz beside it

Inputs are float32 numbers, so that the tests feed exactly these; gradients are of the sum of values.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(2026)
draw = lambda *shape, scale=2.0: (rng.normal(size=shape) * scale).astype(np.float32)  # noqa: E731
inputs = {
    "outputs": draw(32),
    "targets": draw(32),
    "rates": rng.poisson(3, 32).astype(np.float32),
    "pairs": draw(32, 2),
    "logits": draw(12, 5, scale=3.0),
    "labels": np.array([0, 1, 2, 3, 4, -100, 0, 2, 2, -100, 4, 1]),
    "probs": rng.dirichlet(np.ones(5) / 2, 12).astype(np.float32),
    "bits": rng.integers(0, 2, (12, 5)).astype(np.float32),
    "soft_bits": rng.uniform(size=(12, 5)).astype(np.float32),
    "class_weights": np.array([0.5, 1.0, 2.0, 0.25, 1.5], np.float32),
}
x = {name: torch.tensor(value) if value.dtype.kind == "i" else torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
w = x["class_weights"]
valid = torch.where(x["labels"] < 0, 0, x["labels"])
smoothing = float(np.float32(0.1))

LOSSES = {
    "mse": ("outputs", lambda o: F.mse_loss(o, x["targets"], reduction="none")),
    "mae": ("outputs", lambda o: F.l1_loss(o, x["targets"], reduction="none")),
    "huber": ("outputs", lambda o: F.huber_loss(o, x["targets"], reduction="none", delta=float(np.float32(0.7)))),
    "smooth_l1": ("outputs", lambda o: F.smooth_l1_loss(o, x["targets"], reduction="none", beta=float(np.float32(0.7)))),
    "poisson_nll": ("outputs", lambda o: F.poisson_nll_loss(o, x["rates"], log_input=True, full=False, reduction="none")),
    "gaussian_nll": ("pairs", lambda o: F.gaussian_nll_loss(o[:, 0], x["targets"], o[:, 1].exp(), reduction="none", eps=1e-300)),
    "cross_entropy": ("logits", lambda z: F.cross_entropy(z, x["labels"], reduction="none")),
    "cross_entropy_smooth": ("logits", lambda z: F.cross_entropy(z, x["labels"], w, reduction="none", label_smoothing=smoothing)),
    "cross_entropy_mean": ("logits", lambda z: F.cross_entropy(z, x["labels"], w, label_smoothing=smoothing)),
    "cross_entropy_probs": ("logits", lambda z: F.cross_entropy(z, x["probs"], w, reduction="none", label_smoothing=smoothing)),
    "nll": ("logits", lambda z: F.nll_loss(z, x["labels"], w, reduction="none")),
    "nll_mean": ("logits", lambda z: F.nll_loss(z, x["labels"], w)),
    "binary_cross_entropy": ("logits", lambda z: F.binary_cross_entropy_with_logits(z, x["soft_bits"], pos_weight=w, reduction="none")),
    "multilabel_soft_margin": ("logits", lambda z: F.multilabel_soft_margin_loss(z, x["bits"], w, reduction="none")),
    "multi_margin": ("logits", lambda z: F.multi_margin_loss(z, valid, margin=1.5, weight=w, reduction="none")),
    "kl_divergence": ("logits", lambda z: F.kl_div(F.log_softmax(z, -1), x["probs"], reduction="none").sum(-1)),
}


def main() -> None:
    results = dict(inputs)
    for name, (argument, loss) in LOSSES.items():
        leaf = x[argument].clone().requires_grad_()
        value = loss(leaf)
        value.sum().backward()
        results[f"{name}.value"], results[f"{name}.grad"] = value.detach().numpy(), leaf.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), torch_version=np.array(torch.__version__), **results)


if __name__ == "__main__":
    main()
