"""Does a stopped lane free its time? python tests/benchmarks/halving.py [rounds]

Digits, MLP 64-64-64-10, batch 64, AdamW. Steady: the lane-steps a second of a sweep that stops nothing. Ideal: the
lane-steps that halving (reduction 3, 4 rungs) runs, at that speed. In turns; the medians count. Compiling is apart, the looks at the
held-out data at each rung are not. The width matters: the last lanes
leave places of a wide group empty.
"""

import statistics
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)

import lossopt_jax as lo  # noqa: E402

GOAL = 1.2


def main(rounds: int) -> None:
    task = lo.data.digits()
    model = lo.from_linen(lo.models.MLP(widths=(64, 64), output_shape=(10,)))
    for trials, steps, width in ((64, 500, 1), (64, 2000, 1), (64, 2000, 8), (256, 1000, 8)):
        recipe = lo.Recipe(
            lo.bind(lo.losses.cross_entropy),
            lo.bind(lo.optimizers.adamw, weight_decay=1e-2),
            lo.bind(lo.schedules.warmup_cosine, peak=3e-3, warmup=50, total=steps),
        )
        drawn = lo.sample(recipe, {"schedule.peak": lo.log_uniform(1e-4, 1e-1)}, count=trials)
        rule = lo.halving(reduction=3, rungs=4)
        ratios, steady, halved = [], [], []
        for _ in range(rounds + 1):  # the first compiles
            runs = [
                lo.sweep(
                    model, drawn, train=task.train, evaluate=task.evaluate, run=lo.Run(steps, 64), plan=lo.LanePlan(2, width), stop=stop
                )
                for stop in (None, rule)
            ]
            steady.append(runs[0].seconds / runs[0].lane_steps)
            halved.append(runs[1].seconds)
            ratios.append(halved[-1] / (runs[1].lane_steps * steady[-1]))
        full, wall = statistics.median(steady[1:]), statistics.median(halved[1:])
        print(f"{rule.told(trials, steps)}; {width} lanes side by side")
        print(f"  steady {full * 1e6:.1f} us a lane-step, {full * trials * steps:.2f} s for all; halving {wall:.3f} s")
        print(f"  {statistics.median(ratios[1:]):.2f} times the ideal {runs[1].lane_steps * full:.3f} s (goal {GOAL})", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
