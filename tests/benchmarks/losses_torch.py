"""torch's side of losses.py, run by it: reads "loss <tab> count" lines and answers each with the seconds that a gradient takes."""

import sys
import time

import losses_data
import torch
import torch.nn.functional as F

torch.set_num_threads(2)


def ctc(z, targets):
    labels, frames = targets
    log_probs = z.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, frames, torch.full_like(frames, labels.shape[1]), reduction="none").mean()


LOSSES = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
    "poisson_nll": F.poisson_nll_loss,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "cosine": lambda x, y: (1 - F.cosine_similarity(x, y)).mean(),
    "cosine_embedding": lambda x, y: F.cosine_embedding_loss(*x, y),
    "cross_entropy": F.cross_entropy,
    "cross_entropy, distribution": F.cross_entropy,
    "cross_entropy, smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "cross_entropy, 50257 classes": F.cross_entropy,
    "nll": F.nll_loss,
    "kl_divergence": lambda z, q: F.kl_div(z.log_softmax(-1), q, reduction="batchmean"),
    "multi_margin": F.multi_margin_loss,
    "multilabel_soft_margin": F.multilabel_soft_margin_loss,
    "triplet": lambda x, _: F.triplet_margin_loss(*x),
    "margin_ranking": lambda s, y: F.margin_ranking_loss(*s, y),
    "ctc": ctc,
}


def tensors(tree):
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(tensors(x) for x in tree)
    tensor = torch.from_numpy(tree)
    return tensor if tensor.is_floating_point() else tensor.long()


def gradient_of(name: str):
    outputs, targets = (tensors(tree) for tree in losses_data.arrays(name))
    leaves = [x.requires_grad_() for x in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return lambda: torch.autograd.grad(LOSSES[name](outputs, targets), leaves)


def main() -> None:
    now = time.process_time if sys.argv[1] == "cpu" else time.perf_counter
    ready: dict = {}
    for line in sys.stdin:
        name, count = line.rstrip("\n").split("\t")
        if name not in LOSSES:
            print("none", flush=True)
            continue
        if name not in ready:
            ready = {name: gradient_of(name)}
        ready[name]()
        started = now()
        for _ in range(int(count)):
            ready[name]()
        print((now() - started) / int(count), flush=True)


if __name__ == "__main__":
    main()
