"""Learning rates of torch.optim.lr_scheduler, step by step, in float64: writes schedules_torch.npz beside itself.

    /path/to/a/python/with/torch tests/references/schedules_torch.py      # made with torch 2.13.0 (CPU)

`tests/test_schedules.py` reads the file, and calls `curves` to compare afresh where torch is installed.
"""

from pathlib import Path

import numpy as np

LR = 0.5
STEPS = 101


def curves() -> dict[str, np.ndarray]:
    """Name -> [steps] learning rates."""
    import torch
    from torch.optim import lr_scheduler as lrs

    def run(make, steps=STEPS, lr=LR):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler = make(optimizer)
        rates = []
        for step in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if step + 1 < steps:
                scheduler.step()
        return np.array(rates, np.float64)

    def cyclic(mode):
        return lambda o: lrs.CyclicLR(o, base_lr=0.01, max_lr=LR, step_size_up=7, step_size_down=13, mode=mode, cycle_momentum=False)

    def warmup_cosine(o):
        parts = [lrs.LinearLR(o, start_factor=0.01, total_iters=20), lrs.CosineAnnealingLR(o, T_max=80, eta_min=0.02)]
        return lrs.SequentialLR(o, parts, milestones=[20])

    return {
        "StepLR": run(lambda o: lrs.StepLR(o, step_size=10, gamma=0.3)),
        "MultiStepLR": run(lambda o: lrs.MultiStepLR(o, milestones=[5, 12, 40], gamma=0.2)),
        "ExponentialLR": run(lambda o: lrs.ExponentialLR(o, gamma=0.93)),
        "CosineAnnealingLR": run(lambda o: lrs.CosineAnnealingLR(o, T_max=100, eta_min=0.01)),
        "CosineAnnealingWarmRestarts": run(lambda o: lrs.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2, eta_min=0.01)),
        "CosineAnnealingWarmRestarts_alike": run(lambda o: lrs.CosineAnnealingWarmRestarts(o, T_0=7, eta_min=0.01)),
        "OneCycleLR": run(lambda o: lrs.OneCycleLR(o, max_lr=LR, total_steps=STEPS)),
        "CyclicLR": run(cyclic("triangular")),
        "CyclicLR_triangular2": run(cyclic("triangular2")),
        "LinearLR": run(lambda o: lrs.LinearLR(o, start_factor=0.1, end_factor=0.8, total_iters=60)),
        "PolynomialLR": run(lambda o: lrs.PolynomialLR(o, total_iters=80, power=2.5)),
        "SequentialLR": run(warmup_cosine),
    }


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **curves())
