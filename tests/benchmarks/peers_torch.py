"""The contenders of peers.py that use torch; run by it."""

import sys

import numpy as np
import torch
from peers_data import EMBEDDED, HIDDEN, WIDTHS, WORKLOADS, batches, data, serve
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Characters(nn.Module):
    def __init__(self, letters: int):
        super().__init__()
        self.embed = nn.Embedding(letters, EMBEDDED)
        self.gru = nn.GRU(EMBEDDED, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, letters)

    def forward(self, x):
        return self.head(self.gru(self.embed(x))[0])


def network(workload: str, classes: int) -> nn.Module:
    if workload == "rnn":
        return Characters(classes)
    if workload == "cnn":
        convolutions = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, classes))
    a, b = WIDTHS[workload]
    return nn.Sequential(nn.Linear(64, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, classes))


def tensors(workload: str):
    x, y, classes = data(workload)
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if workload == "cnn" else x)
    whole = x, torch.from_numpy(y).long(), torch.from_numpy(batches(workload, len(x))).long()
    x, y, order = (tensor.to(DEVICE) for tensor in whole)
    return x, y, classes, order


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def loop(workload: str, rates: np.ndarray):
    x, y, classes, order = tensors(workload)

    def train(rate: float, steps: int) -> float:
        model = network(workload, classes).to(DEVICE)
        if WORKLOADS[workload].momentum:
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, fused=True)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2, fused=True)
        losses = []
        for indices in order[:steps]:
            loss = cross_entropy(model(x[indices]), y[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses[-steps // 10 :]).mean().item()

    train(1e-3, 20)
    return lambda: (1.0, float(np.mean([train(float(rate), len(order)) for rate in rates])))


def stacked(workload: str, rates: np.ndarray):
    """All lanes of the process in one vmap of torch.func, the optimizer by hand on the stacked parameters."""
    x, y, classes, order = tensors(workload)
    if workload == "rnn":
        raise ImportError("torch.func has no vmap of nn.GRU")
    rate = torch.from_numpy(rates).to(DEVICE)
    base = network(workload, classes).to("meta")

    def loss_of(params, buffers, x, y):
        return cross_entropy(torch.func.functional_call(base, (params, buffers), (x,)), y)

    gradient = torch.func.vmap(torch.func.grad_and_value(loss_of), in_dims=(0, 0, None, None))

    def train(steps: int) -> float:
        params, buffers = torch.func.stack_module_state([network(workload, classes).to(DEVICE) for _ in rates])
        params = {name: p.detach() for name, p in params.items()}
        names = list(params)
        weights = [params[name] for name in names]
        mu, nu = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
        by_rate = [rate.reshape(-1, *[1] * (w.ndim - 1)) for w in weights]
        losses = []
        for step, indices in enumerate(order[:steps], 1):
            grads, loss = gradient(dict(zip(names, weights, strict=True)), buffers, x[indices], y[indices])
            g = [grads[name] for name in names]
            if WORKLOADS[workload].momentum:
                torch._foreach_mul_(mu, 0.9)
                torch._foreach_add_(mu, g)
                torch._foreach_addcmul_(weights, mu, by_rate, value=-1.0)
            else:
                torch._foreach_lerp_(mu, g, 0.1)
                torch._foreach_mul_(nu, 0.999)
                torch._foreach_addcmul_(nu, g, g, 0.001)
                root = torch._foreach_sqrt(nu)
                torch._foreach_div_(root, (1 - 0.999**step) ** 0.5)
                torch._foreach_add_(root, 1e-8)
                update = torch._foreach_div(mu, root)
                torch._foreach_mul_(update, 1 / (1 - 0.9**step))
                torch._foreach_add_(update, weights, alpha=1e-2)
                torch._foreach_addcmul_(weights, update, by_rate, value=-1.0)
            losses.append(loss)
        return torch.stack(losses[-steps // 10 :]).mean().item()

    train(20)
    return lambda: (1.0, train(len(order)))


if __name__ == "__main__":
    serve({"torch_loop": loop, "torch_func": stacked}[sys.argv[1]])
