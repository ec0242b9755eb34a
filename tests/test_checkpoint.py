"""Nothing is lost: runs cut off at any moment go on and end with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.checkpoint import restore

TASK = lo.data.digits()
LINEAR = lo.Model(lambda key, x: (jax.random.normal(key, (64, 10)) * 0.01, {}), lambda params, state, x, *, key, train: (x @ params, state))
RUN = lo.Run(steps=40, batch_size=32, evaluate_every=20, chunk=5)
RECIPE = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adamw), lo.bind(lo.schedules.cosine, init=0.1, total=40))
# The last lane diverges in the middle of the run, so that a frozen lane is saved and gone on with as well.
TRIALS = [*lo.sample(RECIPE, {"schedule.init": lo.log_uniform(1e-3, 0.1)}, count=4).recipes, RECIPE._replace(schedule=lo.bind(
    lo.schedules.piecewise_constant, boundaries=[12], values=[0.1, 1e38]))]  # fmt: skip


class Cut(Exception):
    pass


def cut_at(step):
    def tell(progress):
        if progress.step >= step:
            raise Cut

    return tell


def same(a, b):
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def sweep(devices=2, **kw):
    return lo.sweep(LINEAR, TRIALS, train=TASK.train, evaluate=TASK.evaluate, run=RUN, plan=lo.LanePlan(devices, 1), **kw)


def test_a_sweep_that_is_cut_off_goes_on_to_the_same_bits_on_any_number_of_devices(tmp_path):
    whole = sweep()
    assert whole.diverged_at.max() > 10
    for step, devices in ((5, 2), (15, 1), (30, 2), (40, 1)):
        with pytest.raises(Cut):
            sweep(devices, checkpoint=tmp_path, save_every=0, on_chunk=cut_at(step))
    again = sweep(checkpoint=tmp_path)
    same(whole.history, again.history)
    same(whole.evaluations, again.evaluations)
    np.testing.assert_array_equal(whole.diverged_at, again.diverged_at)
    for lane in range(5):
        jax.tree.map(np.testing.assert_array_equal, whole.state(lane).params, again.state(lane).params)
        jax.tree.map(np.testing.assert_array_equal, whole.state(lane).opt_state, again.state(lane).opt_state)
    seen = []
    same(whole.history, sweep(checkpoint=tmp_path, on_chunk=lambda progress: seen.append(progress)).history)
    assert [progress.step for progress in seen] == [40, 15]  # of each of two waves its end: nothing was left to do


def test_one_run_too_and_what_is_torn_is_dropped(tmp_path):
    run = {"train": TASK.train, "evaluate": TASK.evaluate, "run": RUN}
    whole = lo.fit(LINEAR, RECIPE, **run)
    with pytest.raises(Cut):
        lo.fit(LINEAR, RECIPE, **run, checkpoint=tmp_path, save_every=0, on_chunk=cut_at(20))
    (state,) = (tmp_path / "run").glob("state-*")
    torn = tmp_path / "run" / "record-0000000020-0000000025.npz"
    torn.write_bytes(b"PK torn")
    (tmp_path / "run" / "state-0000000025.orbax-checkpoint-tmp").mkdir()
    assert state.name == "state-0000000020"
    fitted = lo.fit(LINEAR, RECIPE, **run, checkpoint=tmp_path)
    same(whole.history, fitted.history)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, fitted.state.params)
    assert whole.evaluation == fitted.evaluation


def test_a_torn_state_or_record_starts_again_from_what_is_whole(tmp_path):
    run = {"train": TASK.train, "run": RUN}
    with pytest.raises(Cut):
        lo.fit(LINEAR, RECIPE, **run, checkpoint=tmp_path, save_every=0, on_chunk=cut_at(20))
    record = next((tmp_path / "run").glob("record-*15-*20.npz"))
    record.write_bytes(record.read_bytes()[:-20])
    assert restore(tmp_path / "run", []) is None
    same(lo.fit(LINEAR, RECIPE, **run).history, lo.fit(LINEAR, RECIPE, **run, checkpoint=tmp_path).history)


def test_a_bit_that_has_turned_in_a_state_is_seen(tmp_path):
    whole = sweep()
    with pytest.raises(Cut):
        sweep(checkpoint=tmp_path, save_every=0, on_chunk=cut_at(30))
    for state in tmp_path.glob("wave-*/state-*"):
        file = max((f for f in state.rglob("*") if f.is_file() and "/d/" in str(f)), key=lambda f: f.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x55
        file.write_bytes(content)
    same(whole.history, sweep(checkpoint=tmp_path).history)


def test_a_state_that_is_cut_short_is_dropped_without_a_word_of_orbax(tmp_path, capfd):
    whole = sweep()
    with pytest.raises(Cut):
        sweep(checkpoint=tmp_path, save_every=0, on_chunk=cut_at(30))
    for state in tmp_path.glob("wave-*/state-*"):
        file = max((f for f in state.rglob("*") if f.is_file() and "/d/" in str(f)), key=lambda f: f.stat().st_size)
        os.truncate(file, 0)
    same(whole.history, sweep(checkpoint=tmp_path).history)
    assert "Traceback" not in capfd.readouterr().err


def test_a_plan_by_hand_that_the_checkpoint_cannot_follow_is_refused(tmp_path):
    with pytest.raises(Cut):
        sweep(checkpoint=tmp_path, save_every=0, on_chunk=cut_at(30))
    with pytest.raises(ValueError, match=r"was begun with width 1, on which a lane's last bits depend, got width=2"):
        lo.sweep(LINEAR, TRIALS, train=TASK.train, evaluate=TASK.evaluate, run=RUN, plan=lo.LanePlan(1, 2), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="save_every must be at least 0 seconds, got -1"):
        sweep(checkpoint=tmp_path, save_every=-1)
    assert sweep(checkpoint=tmp_path).plan.width == 1


def squared_init(step, *, init: lo.Scalar, total: lo.Scalar, floor: lo.Scalar = 0.0):
    return lo.schedules.cosine(step, init=init**2, total=total, floor=floor)


def test_other_functions_of_the_same_numbers_are_refused(tmp_path):
    bent = lo.Model(LINEAR.init, lambda params, state, x, *, key, train: (np.float32(0.5) * x @ params, state))
    squared = RECIPE._replace(schedule=lo.bind(squared_init, init=0.1, total=40))
    lo.fit(LINEAR, RECIPE, train=TASK.train, run=RUN, checkpoint=tmp_path / "one")
    lo.sweep(LINEAR, [RECIPE], train=TASK.train, run=RUN, checkpoint=tmp_path / "many")
    for model, recipe in ((bent, RECIPE), (LINEAR, squared)):
        with pytest.raises(ValueError, match=r"of another run: not the same model, loss, optimizer and schedule"):
            lo.fit(model, recipe, train=TASK.train, run=RUN, checkpoint=tmp_path / "one")
        with pytest.raises(ValueError, match=r"of another run: not the same model, loss, optimizer and schedule"):
            lo.sweep(model, [recipe], train=TASK.train, run=RUN, checkpoint=tmp_path / "many")


def test_another_run_is_refused_by_name(tmp_path):
    lo.fit(LINEAR, RECIPE, train=TASK.train, run=RUN, checkpoint=tmp_path)
    other = RECIPE._replace(schedule=RECIPE.schedule.replace(init=0.2))
    with pytest.raises(ValueError, match=r"of another run: not the same recipe$"):
        lo.fit(LINEAR, other, train=TASK.train, run=RUN, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"not the same held-out data, run$"):
        lo.fit(LINEAR, RECIPE, train=TASK.train, evaluate=TASK.evaluate, run=lo.Run(steps=41), checkpoint=tmp_path)


CHILD = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import sys; sys.path.insert(0, {tests!r})
import dataclasses, numpy as np, lossopt_jax as lo, test_checkpoint as t
run = dataclasses.replace(t.RUN, steps=6000)
swept = lo.sweep(t.LINEAR, t.TRIALS, train=t.TASK.train, evaluate=t.TASK.evaluate, run=run, plan=lo.LanePlan(2, 1), **{options})
np.savez({out!r}, **swept.history, **{{"e" + name: values for name, values in swept.evaluations.items()}})
"""


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    def start(out, options):
        code = CHILD.format(tests=os.path.dirname(__file__), out=str(tmp_path / out), options=options)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    first = start("whole.npz", {})
    _, stderr = first.communicate()
    assert first.returncode == 0, stderr.decode()
    kept = tmp_path / "kept"
    options = {"checkpoint": str(kept), "save_every": 0}
    chance, kills = random.Random(0), 0
    while kills < 20:
        before = sum(1 for _ in kept.glob("wave-0000/record-*"))
        child = start("cut.npz", options)
        while child.poll() is None and sum(1 for _ in kept.glob("wave-0000/record-*")) <= before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.0))  # within a chunk, within a write, between two
        if child.poll() is not None:
            _, stderr = child.communicate()
            assert child.returncode == 0, stderr.decode()
            pytest.fail(f"the run was over after {kills} kills: make it longer")
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
    last = start("cut.npz", options)
    _, stderr = last.communicate()
    assert last.returncode == 0, stderr.decode()
    whole, cut = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "cut.npz")
    same(whole, cut)


CONFIG = """
[data]
name = "digits"
[model]
name = "mlp"
widths = [8]
[loss]
name = "cross_entropy"
[optimizer]
name = "sgd"
[schedule]
name = "cosine"
init = 0.1
[run]
steps = 486
batch_size = 16
chunk = 3
[sweep]
count = 12
stop = {stop}
[sweep.space]
schedule.init = {{ log_uniform = [1e-3, 1e30] }}
[[sweep.space.optimizer]]
name = "sgd"
[[sweep.space.optimizer]]
name = "momentum"
beta = {{ uniform = [0.5, 0.99] }}
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", ['{ name = "halving", rungs = 3 }', '{ name = "population", every = 40 }'])
def test_a_command_that_is_killed_while_lanes_stop_or_copy_each_other(stop, tmp_path):
    config = tmp_path / "killed.toml"
    config.write_text(CONFIG.format(stop=stop))
    own = {"JAX_NUM_CPU_DEVICES": "2", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def start(out):
        options = ["--out", str(out), "--resume", "--save-every", "0", "--plan", "devices=2,width=1", "--quiet"]
        command = [sys.executable, "-m", "lossopt_jax.cli", "sweep", str(config), *options]
        return subprocess.Popen(command, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def saved():
        return sum(1 for _ in cut.glob("state/wave-*/record-*"))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = start(whole)
    first.communicate()
    assert first.returncode == 0
    chance = random.Random(0)
    for kills in range(8):
        before, child = saved(), start(cut)
        while child.poll() is None and saved() <= before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        assert child.poll() is None, f"over after {kills} kills: {child.stderr.read().decode()}"
        child.send_signal(signal.SIGKILL)
        child.communicate()
    last = start(cut)
    _, stderr = last.communicate()
    assert last.returncode == 0, stderr.decode()
    for name in ("trials.csv", "recipes.json", "best.toml", "best_params.msgpack", *["copies.csv"] * ("population" in stop)):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    with np.load(whole / "history.npz") as mine, np.load(cut / "history.npz") as its:
        assert (mine["stopped_at"] >= 0).any() == ("halving" in stop)
        same(mine, its)
