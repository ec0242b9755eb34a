"""torch's values and gradients of its losses on embeddings and scores, in float64, for tests/test_losses_contrastive.py.

    python tests/references/metric_torch.py      # in an environment with torch (made with 2.13, CPU); writes metric_torch.npz beside it

Inputs are float32 numbers, so that the tests feed exactly these; gradients are of the sum of values.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(2026)
inputs = {
    "x": rng.normal(size=(3, 12, 5)).astype(np.float32),
    "signs": rng.choice(np.array([-1, 1], np.int32), 12),
    "scores": rng.normal(size=(2, 12)).astype(np.float32),
}
signs = torch.tensor(inputs["signs"])
margin = float(np.float32(0.3))
tiny = 1e-30  # torch adds eps to each difference; lossopt_jax adds none


def triplet(x: torch.Tensor, p: float, swap: bool = False) -> torch.Tensor:
    return F.triplet_margin_loss(x[0], x[1], x[2], margin=margin, p=p, eps=tiny, swap=swap, reduction="none")


LOSSES = {
    "cosine": ("x", lambda x: 1 - F.cosine_similarity(x[0], x[1], dim=-1)),
    "cosine_embedding": ("x", lambda x: F.cosine_embedding_loss(x[0], x[1], signs, margin=margin, reduction="none")),
    "triplet_1": ("x", lambda x: triplet(x, 1.0)),
    "triplet_2": ("x", lambda x: triplet(x, 2.0)),
    "triplet_3.5": ("x", lambda x: triplet(x, 3.5)),
    "triplet_2_swap": ("x", lambda x: triplet(x, 2.0, swap=True)),
    "margin_ranking": ("scores", lambda s: F.margin_ranking_loss(s[0], s[1], signs, margin=margin, reduction="none")),
}


def main() -> None:
    results = dict(inputs)
    for name, (argument, loss) in LOSSES.items():
        leaf = torch.tensor(inputs[argument], dtype=torch.float64).requires_grad_()
        value = loss(leaf)
        value.sum().backward()
        results[f"{name}.value"], results[f"{name}.grad"] = value.detach().numpy(), leaf.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), torch_version=np.array(torch.__version__), **results)


if __name__ == "__main__":
    main()
