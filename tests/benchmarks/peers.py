"""The sweep against what people would use instead: python tests/benchmarks/peers.py [workload ...] [--torch PYTHON] [--only ...]

Workloads: mlp (digits, 64-64-64-10, batch 64, AdamW, 64 lanes x 500 steps), small (64-16-16-10, batch 16, AdamW, 256 x 200), cnn (digits,
3 x 3 convolutions of 16 and 32 channels, batch 64, SGD with momentum, 32 x 300), rnn (characters, GRU 64, batch 32 x 32 characters, AdamW,
32 x 100), growth (small, 64 to 4,096 lanes, ours alone). Each lane has a learning rate of its own.

Every contender compiles and warms up in processes of its own, then waits; the rounds go through the contenders in turns and the best
round of each counts. Each uses both cores: two processes of one thread each where one cannot. A `--torch` Python has torch and
scikit-learn; optuna is needed for its two contenders, ray[tune] for its own, whose actors start and compile within the time that counts,
since they end with the study. What is not installed is said and left out.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

CONTENDERS = {  # name -> (processes, what it is)
    "ours": (1, "lo.sweep, lanes over two devices"),
    "jit_step": (2, "a jitted step fed with numpy, by hand"),
    "vmap_scan": (1, "vmap of a scan over all lanes, by hand"),
    "optuna_scan": (2, "Optuna, random search, one compiled scan"),
    "optuna_fresh": (2, "Optuna, a Flax loop that compiles per trial"),
    "ray_actors": (1, "Ray Tune, reuse_actors, a scan compiled in each"),
    "torch_loop": (2, "PyTorch, fused optimizer, one thread"),
    "torch_func": (2, "torch.func, stacked lanes, one thread"),
}
HERE = Path(__file__).resolve()


class Worker:
    """The processes of one contender, ready to run the workload when told."""

    def __init__(self, contender: str, workload: str, python: str):
        count = CONTENDERS[contender][0]
        module = HERE.with_name("peers_torch.py" if contender.startswith("torch") else "peers_jax.py")
        self.processes = [
            subprocess.Popen([python, module, contender, workload, str(i), str(count)], stdin=-1, stdout=-1, text=True)
            for i in range(count)
        ]
        answers = [p.stdout.readline().split() for p in self.processes]
        self.missing = " ".join(answers[0][1:]) if answers[0][:1] != ["ready"] else ""
        self.compile_seconds = 0.0 if self.missing else max(float(answer[1]) for answer in answers)
        self.best, self.loss = float("inf"), float("nan")

    def run(self) -> None:
        began = time.perf_counter()
        for process in self.processes:
            print("go", file=process.stdin, flush=True)
        answers = [process.stdout.readline().split() for process in self.processes]
        # An answer is the part of the lanes that was run, and the mean loss of the last steps.
        seconds = (time.perf_counter() - began) / float(answers[0][0])
        self.best, self.loss = min(self.best, seconds), sum(float(a[1]) for a in answers) / len(answers)

    def end(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


def compare(workload: str, rounds: int, torch: str | None, only: list[str]) -> None:
    from peers_data import WORKLOADS

    lanes, steps = WORKLOADS[workload].lanes, WORKLOADS[workload].steps
    workers = {}
    for name in only:
        if name.startswith("torch") and torch is None:
            print(f"{name}: no --torch given")
            continue
        worker = Worker(name, workload, torch if name.startswith("torch") else sys.executable)
        if worker.missing:
            print(f"{name}: {worker.missing}")
            worker.end()
        else:
            workers[name] = worker
    for i in range(rounds):
        for name, worker in workers.items():
            if name != "optuna_fresh" or not i:
                worker.run()
    ours = workers["ours"]
    print(f"\n{workload}: {lanes} lanes x {steps} steps; best of {rounds} rounds in turns")
    print(f"{'':44s}{'ms a lane':>10s}{'us a step':>10s}{'times ours':>11s}{'compiling, s':>13s}{'all, times ours':>16s}{'loss':>8s}")
    for name, worker in workers.items():
        whole = (worker.best + worker.compile_seconds) / (ours.best + ours.compile_seconds)
        row = f"{worker.best / lanes * 1e3:10.2f}{worker.best / lanes / steps * 1e6:10.1f}{worker.best / ours.best:11.2f}"
        print(f"{CONTENDERS[name][1]:44s}{row}{worker.compile_seconds:13.1f}{whole:16.1f}{worker.loss:8.3f}")
    if (rival := workers.get("optuna_scan")) is not None:
        slower, head_start = rival.best / lanes - ours.best / lanes, ours.compile_seconds - rival.compile_seconds
        print(f"ahead of the one compiled scan, compiling counted, from {max(0, head_start / slower):.0f} lanes on")
    for worker in workers.values():
        worker.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["mlp", "small", "cnn", "rnn", "growth"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", help="a Python that has torch")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="besides ours, which is always run")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    for workload in given.workloads:
        if workload == "growth":
            subprocess.run([sys.executable, HERE.with_name("peers_jax.py"), "growth", "small", "0", "1"], check=True)
        else:
            compare(workload, given.rounds, given.torch, list(dict.fromkeys(["ours", *given.only])))


if __name__ == "__main__":
    main()
