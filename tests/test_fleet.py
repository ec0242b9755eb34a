"""Several processes at one sweep: each wave is one's at a time, a dead one's is taken over, and the table is that of one process."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.report import folder
from lossopt_jax.sweep import fleet
from lossopt_jax.sweep.fleet import Claims, Lost

TASK = lo.data.digits()
RECIPE = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
SWEEP = {"train": TASK.train, "run": lo.Run(steps=10, batch_size=32), "plan": lo.LanePlan(2, 1)}
MODEL = lo.Model(lambda key, x: (jnp.zeros((64, 10)), {}), lambda params, state, x, *, key, train: (x @ params, state))


def trials(count):
    return lo.grid(RECIPE, {"schedule.value": np.geomspace(1e-3, 0.1, count).tolist()})


def test_a_claim_is_one_processs_until_it_ends_or_lapses(tmp_path, monkeypatch):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with first.held("wave") as held:
        held()
        with second.held("wave") as other, second.held("another") as free:
            assert other is None
            assert free is not None
    with second.held("wave") as held:  # given back
        held()
        (claim,) = [path for path in tmp_path.glob("wave.claim-*") if path.stat().st_mtime > 0]
        os.utime(claim, (1e9, 1e9))  # as if it had not been touched for years
        with first.held("wave") as taken:
            taken()
            with pytest.raises(Lost):
                held()
    assert not first.finished("wave")
    first.finish("wave")
    assert second.finished("wave")


def test_of_many_that_reach_for_it_one_gets_it(tmp_path):
    got = []

    def reach(claims):
        with claims.held("wave") as held:
            if held is not None:
                got.append(claims)
                time.sleep(0.2)

    threads = [threading.Thread(target=reach, args=(Claims(tmp_path),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_claim_is_kept_alive_while_its_process_is(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "LEASE", 0.3)
    with Claims(tmp_path).held("wave") as held:
        time.sleep(0.8)
        held()
        with Claims(tmp_path).held("wave") as other:
            assert other is None


def test_what_two_share_is_what_one_finds(tmp_path):
    alone, seen = lo.sweep(MODEL, trials(6), **SWEEP), []

    def leaves_in_its_second_wave(progress):
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lo.work(MODEL, trials(6), **SWEEP, checkpoint=tmp_path, on_chunk=leaves_in_its_second_wave)
    assert len(list(tmp_path.glob("wave-*.done"))) == 1
    lo.work(MODEL, trials(6), **SWEEP, checkpoint=tmp_path, on_chunk=seen.append)
    assert len(seen) == 4  # three waves of two lanes, the second begun twice
    shared = lo.sweep(MODEL, trials(6), **SWEEP, checkpoint=tmp_path)
    for name, values in alone.history.items():
        np.testing.assert_array_equal(shared.history[name], values)
    assert shared.table() == alone.table()


PROBE = """
import itertools, pathlib, sys
for i in itertools.count():
    try:
        (pathlib.Path(sys.argv[1]) / f".probe-{i}").touch()
    except FileNotFoundError:
        break
"""


def test_a_state_is_removed_while_another_process_looks_into_it(tmp_path):
    state = tmp_path / folder.STATE
    state.mkdir()
    for i in range(3000):
        (state / str(i)).touch()
    with subprocess.Popen([sys.executable, "-c", PROBE, str(state)]) as probe:
        while not list(state.glob(".probe-*")):
            time.sleep(0.01)
        folder.remove_state(tmp_path)
        left = list(tmp_path.iterdir())
        probe.kill()
    assert left == []


WORKER = """
import sys
from lossopt_jax.sweep import fleet
fleet.LEASE = 3.0
sys.argv = ["lossopt", "sweep", "configs/digits_mlp.toml", "--join", "--quiet", "--save-every", "0.1", "--out", sys.argv[1]]
sys.argv += ["--set", "run.chunk=20", "--plan", "devices=1,width=8"]
from lossopt_jax.cli import main
main()
"""


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err


@pytest.mark.slow
def test_a_worker_killed_with_9_is_replaced_and_the_table_is_the_same(tmp_path):
    def start(*args):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
        return subprocess.Popen([sys.executable, *args], env=environment, stdout=-1, stderr=-1, text=True)

    alone = "from lossopt_jax.cli import main; import sys; sys.argv = ['lossopt', 'sweep', 'configs/digits_mlp.toml', '--quiet',"
    alone += f"'--set', 'run.chunk=20', '--plan', 'devices=1,width=8', '--out', r'{tmp_path / 'alone'}']; main()"
    done = start("-c", alone)
    ended(done)
    together = str(tmp_path / "together")
    workers = [start("-c", WORKER, together) for _ in range(3)]
    state = tmp_path / "together" / "state"
    while not list(state.glob("wave-*/state-*")):
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].communicate()
    for worker in workers[1:]:
        ended(worker)
    assert not state.exists()
    assert (tmp_path / "together" / "trials.csv").read_text() == (tmp_path / "alone" / "trials.csv").read_text()
