"""Several processes as one sweep: the same bits as one process, one end for all, and nothing that one process knows decides for itself."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lossopt_jax import hosts, watch

OPTIONS = ["configs/digits_mlp.toml", "--quiet", "--save-every", "0.1", "--plan", "devices=2,width=8"]
OPTIONS += ["--set", "run.chunk=10", "--set", "sweep.count=21", "--set", "run.steps=300"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(out, *arguments, devices=1, options=OPTIONS):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "lossopt_jax.cli", "sweep", *options, "--out", str(out), *arguments]
    return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)


def together(out, many, *arguments, **more):
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(many)]
    return [start(out, *where, "--process", str(i), *arguments, **more) for i in range(many)]


def ended(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out, err


def test_of_one_process_all_is_as_if_it_was_not_there():
    values = {"a": np.arange(3.0)}
    assert hosts.pull(values)["a"].tolist() == [0, 1, 2]
    assert hosts.from_first(lambda: 3) == 3
    with pytest.raises(KeyError):
        hosts.from_first(lambda: {}["missing"])
    hosts.check_alike({"train data": "1"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:99", 2, None), "--process is missing"),
        ((None, 2, 1), "--coordinator is missing"),
        (("localhost:99", 2, 2), "got --process 2 of --processes 2"),
        (("localhost", 2, 1), "HOST:PORT"),
        (("localhost:0", 2, 1), "HOST:PORT"),
        (("auto", 2, 1), "leave out"),
    ],
)
def test_what_does_not_say_which_process_this_is_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        watch.checked(*given)


def test_an_unknown_host_is_named(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="there is no host 'nowhere'"):
        watch.checked("nowhere:99", 2, 0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    ended(start(out, devices=2))
    return (out / "trials.csv").read_text(), dict(np.load(out / "history.npz"))


def same(out, alone):
    assert (out / "trials.csv").read_text() == alone[0]
    for name, values in np.load(out / "history.npz").items():
        np.testing.assert_array_equal(values, alone[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("many", [2, 4])  # of four two stand by: the plan has two devices
def test_several_processes_are_to_the_bit_what_one_is(tmp_path, alone, many):
    (out, _), *others = [ended(process) for process in together(tmp_path / "run", many)]
    assert "the best 10 of 21 recipes" in out
    for i, (said, _) in enumerate(others, 1):
        waits, *rest = said.splitlines()
        assert waits.startswith(f"process {i} of {many}: waits up to 120 s for all at 127.0.0.1:")
        assert rest == [
            f"process {i} of {many}: 1 of {many} devices",
            f"process {i} of {many}: done; process 0 has the results",
        ]
    same(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "then"), [(1, 1), (0, 3)])
def test_when_one_dies_the_others_end_and_another_number_goes_on(tmp_path, alone, dies, then):
    place = tmp_path / "run"
    processes = together(place, 2)
    until = time.monotonic() + 200
    while not list((place / "state").glob("wave-*/state-*")) and time.monotonic() < until:
        time.sleep(0.05)
    processes[dies].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, err = ended(processes[1 - dies], 1)
    assert time.monotonic() - began < 60
    assert f"process {dies}{', the coordinator,' if dies == 0 else ''} has ended before the sweep was done; " in err
    processes[dies].communicate()
    rest = [start(place, "--resume", devices=2)] if then == 1 else together(place, then, "--resume")
    for process in rest:
        ended(process)
    same(place, alone)


@pytest.mark.slow
def test_processes_with_other_configs_are_told(tmp_path):
    port = free_port()
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    processes = [start(tmp_path / "run", *where, str(i), "--set", f"run.seed={i}") for i in range(2)]
    for process in processes:
        _, err = ended(process, 2)
        assert "not all processes have the same config: process 1 differs from process 0" in err
