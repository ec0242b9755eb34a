"""Lanes on a GPU or TPU against one at a time and torch.func: python tests/benchmarks/accelerator.py [--torch PYTHON] [--lanes N ...]

The workloads mlp, small and cnn of peers.py, on the first device that JAX finds; torch.func stacks all lanes on cuda where there is one,
else on the CPU. Milliseconds a lane, compiling apart, the best of three; the device's name stands on top. Not run on an accelerator yet:
none was at hand.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
ALONE = 2  # lanes of the run one at a time, of which the others would take as long


def seconds(sweep) -> float:
    sweep()
    return min(sweep().seconds for _ in range(3))


def torch_seconds(python: str, workload: str, lanes: int) -> float:
    import time

    command = [python, HERE.with_name("peers_torch.py"), "torch_func", workload, "0", "1", str(lanes)]
    process, best = subprocess.Popen(command, stdin=-1, stdout=-1, text=True), np.inf
    if not process.stdout.readline().startswith("ready"):
        return np.nan
    for _ in range(3):
        began = time.perf_counter()
        print("go", file=process.stdin, flush=True)
        process.stdout.readline()
        best = min(best, time.perf_counter() - began)
    process.stdin.close()
    process.wait()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="a Python that has torch")
    parser.add_argument("--lanes", nargs="+", type=int, default=[64, 256, 1024, 4096])
    given = parser.parse_args()
    sys.argv = ["peers_jax", "none"]  # it reads its contender from there
    import jax
    from peers_jax import lanes_of

    import lossopt_jax as lo

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ms a lane")
    print(f"{'':8}{'lanes':>7}{'plan':>16}{'lo.sweep':>10}{'one at a time':>15}{'torch.func':>12}")
    for workload in ("mlp", "small", "cnn"):
        alone = seconds(lanes_of(workload, np.geomspace(1e-3, 1e-2, ALONE), lo.LanePlan(1, 1))) / ALONE
        for lanes in given.lanes:
            sweep = lanes_of(workload, np.geomspace(1e-4, 1e-2, lanes))
            ours, plan = seconds(sweep) / lanes, sweep().plan
            torch = torch_seconds(given.torch, workload, lanes) / lanes if given.torch else np.nan
            row = f"{plan.devices} x {plan.width:d}".rjust(16) + f"{ours * 1e3:10.3f}{alone * 1e3:15.2f}{torch * 1e3:12.3f}"
            print(f"{workload:8}{lanes:7d}{row}", flush=True)


if __name__ == "__main__":
    main()
