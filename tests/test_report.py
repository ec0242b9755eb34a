"""What a person sees of a run: the folder and its whole files, the tables, the progress, the pictures. Made from a real, small sweep."""

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

import lossopt_jax as lo
from lossopt_jax import checkpoint
from lossopt_jax.loop import Progress
from lossopt_jax.report import folder, plots, tables
from lossopt_jax.report.progress import progress

NAN = math.nan


@pytest.fixture(scope="module")
def swept():
    """Six learning rates of a linear fit under two seeds, the last far too great: ([chunks], Swept)."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    trials = lo.grid(recipe, {"schedule.value": [1e-3, 1e-2, 1e-1, 0.3, 0.5, 1e9]})
    chunks = []
    run = lo.Run(steps=60, batch_size=8, evaluate_every=20)
    model = lo.from_linen(nn.Dense(1))
    return chunks, lo.sweep(model, trials, train=(x, 3 * x), evaluate=(x, 3 * x), run=run, seeds=2, on_chunk=[chunks.append])


# The folder


def test_claim_makes_a_folder_and_refuses_one_that_holds_something(tmp_path):
    place = folder.claim(tmp_path / "a" / "b")
    assert place.is_dir()
    assert folder.claim(place) == place  # empty is as good as new
    (place / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError) as refused:
        folder.claim(place)
    assert all(word in str(refused.value) for word in (str(place), "--overwrite", "--resume"))
    with pytest.raises(ValueError, match="not both"):
        folder.claim(place, overwrite=True, resume=True)
    assert [p.name for p in place.iterdir()] == ["notes.txt"]


def test_new_results_remove_our_old_ones_and_nothing_else(tmp_path):
    outside = tmp_path / "precious.json"
    outside.write_text("{}")
    place = tmp_path / "run"
    (place / "sub").mkdir(parents=True)
    others = [place / "notes.txt", place / "sub" / "config.toml", place / ".trials.csv.swp"]
    for path in [*others, *(place / name for name in folder.RESULTS)]:
        path.write_text("x")
    (place / "summary.json").unlink()
    (place / "summary.json").symlink_to(outside)
    leftover = place / ".history.npz.0a1b2c3d.tmp"
    leftover.write_text("half")
    folder.claim(place, resume=True)
    assert set(folder.RESULTS) <= {p.name for p in place.iterdir()}
    assert not leftover.exists()
    folder.claim(place, overwrite=True)
    assert set(folder.RESULTS) <= {p.name for p in place.iterdir()}  # the old results stay until there are new ones
    folder.begin(place)
    assert sorted(p for p in place.rglob("*") if p.is_file()) == sorted(others)
    assert outside.read_text() == "{}"
    (place / "curves.png").mkdir()
    (place / "curves.png" / "kept").touch()
    with pytest.raises(OSError, match="cannot write to the folder"):
        folder.begin(place)
    assert (place / "curves.png" / "kept").exists()


def test_a_folder_that_cannot_be_is_one_line_with_path_and_reason(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for place, reason in ((file, "a file is in the way"), (file / "under", "Not a directory")):
        with pytest.raises(OSError, match=reason) as failed:
            folder.claim(place)
        assert str(place) in str(failed.value)
        assert "\n" not in str(failed.value)
        assert not isinstance(failed.value, FileExistsError)


def test_default_folders_of_one_second_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 1, 2, 3, 4, 5)
    places = [folder.default_folder("digits", now) for _ in range(3)]
    assert [str(place) for place in places] == [f"runs/digits-20260102-030405{tail}" for tail in ("", "-2", "-3")]
    assert all(folder.claim(place).is_dir() for place in places)
    assert re.fullmatch(r"x-\d{8}-\d{6}", folder.default_folder("x").name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "runs").touch()
    with pytest.raises(OSError, match=r"cannot make the folder runs/x-"):
        folder.default_folder("x")


KILLED = """
import sys
from lossopt_jax.report import folder
content = [b"old", b"new"][int(sys.argv[2])] * 20_000_000
folder.write_bytes(sys.argv[1], content)
"""


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "history.npz"
    subprocess.run([sys.executable, "-c", KILLED, str(path), "0"], check=True)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), "1"])
    deadline = time.monotonic() + 30
    sizes = [0]
    while not sizes[-1] and time.monotonic() < deadline:  # until the temporary file has grown but is not renamed yet
        sizes.append(next((p.stat().st_size for p in tmp_path.glob(".history.npz.*.tmp")), 0))
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert sizes[-1] > 0
    left = list(tmp_path.glob(".*.tmp"))
    assert len(left) == 1
    assert path.read_bytes() == b"old" * 20_000_000
    folder.claim(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["history.npz"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    folder.write_json(path, {"a": 1})
    # Every write to /dev/full fails as on a full disk; the device stands in for the temporary file, so it is never renamed or removed.
    monkeypatch.setattr(checkpoint, "open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device") as failed:
        folder.write_json(path, {"a": 2})
    assert str(failed.value) == f"cannot write {path}: No space left on device"
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_cut_short_by_the_kernel_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "history.npz"
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"
    )
    done = subprocess.run([sys.executable, "-B", "-c", f"{limit}\n{KILLED}", str(path), "1"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"OSError: cannot write {path}: File too large"
    assert list(tmp_path.iterdir()) == []


def test_any_failure_in_a_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "config.toml"
    folder.write_text(path, "old")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write_whole(path, interrupted)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.toml", "old")]
    gone = tmp_path / "gone" / "config.toml"
    with pytest.raises(OSError, match="No such file or directory") as failed:
        folder.write_text(gone, "x")
    assert str(gone) in str(failed.value)
    assert not gone.parent.exists()


def test_files_have_the_mode_that_the_user_asks_of_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        folder.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_json_is_strict(tmp_path):
    value = {"a": NAN, 3: [np.float32(0.5), np.inf, np.arange(2)], "b": {"c": np.array([1.0, np.nan])}, "p": tmp_path, "t": (True, None)}
    folder.write_json(tmp_path / "a.json", value)
    folder.write_jsonl(tmp_path / "a.jsonl", [{"x": np.float64(0.1)}, {"x": -np.inf}])
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "3": [0.5, None, [0, 1]], "b": {"c": [1.0, None]}, "p": str(tmp_path), "t": [True, None]}
    assert (tmp_path / "a.jsonl").read_text() == '{"x": 0.1}\n{"x": null}\n'


def test_csv_keeps_every_digit_and_the_order_of_keys(tmp_path):
    rows = [{"b": 0.1 + 0.2, "a": np.float64(1 / 3)}, {"a": 1e-300, "c": 'say "x, y"\nz'}, {"b": np.float32(0.1), "c": NAN}]
    folder.write_csv(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["b", "a", "c"]
    assert (float(lines[0][0]), float(lines[0][1]), lines[0][2]) == (0.1 + 0.2, 1 / 3, "")
    assert (float(lines[1][1]), lines[1][2]) == (1e-300, rows[1]["c"])
    assert np.float32(lines[2][0]) == np.float32(0.1)
    assert math.isnan(float(lines[2][2]))


def test_npz_reads_back(tmp_path, swept):
    _, result = swept
    folder.write_npz(tmp_path / "history.npz", result.history)
    with np.load(tmp_path / "history.npz") as read:
        assert set(read) == set(result.history)
        np.testing.assert_array_equal(read["loss"], result.history["loss"])


# Tables


def printed(thing, width=100, encoding="utf-8", **options):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    Console(file=file, width=width, **options).print(thing)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def three_numbers(result):
    """The rows of a real sweep with two more swept numbers of awkward names."""
    more = {"optimizer.weight_decay": lo.log_uniform(1e-5, 0.1), "schedule.warmup": lo.int_uniform(0, 2500)}
    values = {"optimizer.weight_decay": 1.234567e-5, "schedule.warmup": 1234.0}
    return [{**row, **values} for row in result.table()], {**result.trials.space, **more}


def test_the_table_fits_a_hundred_columns_and_says_what_is_in_the_rows(swept):
    rows, space = three_numbers(swept[1])
    text = printed(tables.sweep_table(rows, space))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in text  # nothing is cut off
    assert "\x1b" not in text
    assert lines[0].strip() == "6 recipes, best first; 1 diverged"
    first, last = (next(line for line in lines[1:] if re.match(rf" *{rank} ", line)) for rank in (1, 6))
    assert f"{rows[0]['schedule.value']:g}" in first.split()
    assert {"1234", "1.23e-05"} <= set(first.split())
    for metric in ("train_loss", "held_out_loss"):
        mean, spread = rows[0][metric], rows[0][f"{metric}_sem"]
        shown = [(float(a), float(b)) for a, b in re.findall(r"(\S+) ±\s*(\S+)", first)]
        assert any(abs(a - mean) <= 0.01 * mean + 5e-6 and abs(b - spread) <= 0.01 * spread + 5e-6 for a, b in shown)
    assert "diverged (2 seeds)" in last
    assert "nan" not in text


def test_the_gauge_lies_where_the_best_does(swept):
    row = dict(swept[1].table()[0])
    for value, at in ((1e-5, 0), (1e-3, 4), (0.1, 8)):
        space = {"schedule.value": lo.log_uniform(1e-5, 0.1)}
        text = printed(tables.sweep_table([{**row, "schedule.value": value}], space))
        gauge = re.search(r"[─●]*●[─●]*", text).group()
        assert (len(gauge), gauge.index("●")) == (9, at)
    assert "1e-05 to 0.1" in text


@pytest.mark.parametrize("numbers", [0, 1, 4, 6])
def test_tables_of_any_number_of_columns_fit(swept, numbers):
    names = ("schedule.peak", "loss.label_smoothing", "optimizer.b1", "optimizer.weight_decay.peak", "schedule.warmup", "optimizer.eps")
    space = {name: lo.log_uniform(1e-5, 1.0) for name in names[:numbers]}
    rows = [{**row, **dict.fromkeys(space, 0.000123456)} for row in swept[1].table()]
    text = printed(tables.sweep_table(rows, space, limit=3))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "the best 3 of 6 recipes" in text
    assert text.count("0.000123") == 3 * numbers
    if numbers == 4:
        assert "…" not in printed(tables.sweep_table(rows, space, limit=3, width=80), width=80)


def test_six_numbers_fit_eighty_columns_and_none_is_cut(swept):
    names = ("schedule.peak", "loss.label_smoothing", "optimizer.b1", "optimizer.weight_decay", "schedule.warmup", "optimizer.eps")
    space = {name: lo.log_uniform(1e-5, 1.0) for name in names}
    rows = [{**row, **dict.fromkeys(space, 1.0634e-5), "held_out_accuracy": 0.9, "held_out_accuracy_sem": 0.01} for row in swept[1].table()]
    text = printed(tables.sweep_table(rows, space, limit=3, width=80), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("1.06e-5") == 3 * 6


def test_tables_of_nothing_and_of_nothing_but_divergence(swept):
    space = swept[1].trials.space
    assert "0 recipes" in printed(tables.sweep_table([], space))
    dead = [{**row, "status": "diverged", **{key: NAN for key in row if "loss" in key}} for row in swept[1].table()]
    text = printed(tables.sweep_table(dead, space))
    assert "6 recipes, best first; 6 diverged" in text
    assert "●" not in text


def test_a_pipe_that_knows_no_unicode_gets_the_table_too(swept):
    rows, space = three_numbers(swept[1])
    assert "±" in printed(tables.sweep_table(rows, space), encoding="cp1252")  # what a pipe on Windows is


def test_notes_say_the_edge_and_the_range():
    space = {"schedule.peak": lo.log_uniform(1e-5, 1.0), "schedule.warmup": lo.int_uniform(0, 200), "loss.delta": lo.choice([2.0])}
    best = {"schedule.peak": 0.97, "schedule.warmup": 50.0, "loss.delta": 2.0}
    edges = {"schedule.peak": "high", "schedule.warmup": "low", "loss.delta": "high"}
    assert tables.edge_notes(edges, {"schedule.peak": (1e-5, 10.0), "schedule.warmup": None, "loss.delta": None}, space, best) == [
        "schedule.peak: the best, 0.97, lies at the high end of its range 1e-05 to 1: try 1e-05 to 10",
        "schedule.warmup: the best, 50, lies at the low end of its range 0 to 200, which is the least that it may be",
        "loss.delta: the best, 2, lies at the high end of its range 2 to 2: list greater values as well",
    ]


def test_the_lines_of_one_run():
    history = {"loss": np.r_[np.full(95, 9.0), np.full(5, 0.5)]}
    assert tables.run_lines(history, {"loss": 0.25, "accuracy": 0.9}, None, 2.0, 1.25) == [
        "train loss 0.5  held-out loss 0.2500  held-out accuracy 90.0%",
        "2.0 s (50 steps/s) after 1.2 s of compiling",
    ]
    assert tables.run_lines(history, {"loss": NAN}, 7, 2.0, 1.0)[0] == "diverged at step 7: try a smaller learning rate"
    assert tables.run_lines({"loss": np.zeros(0)}, {}, None, 0.0, 1.0)[0] == "no steps were taken"


# Progress


def told(chunks, steps, lanes, **options):
    terminal = options.pop("terminal", False)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system="truecolor" if terminal else None)
    with progress(steps, lanes, console=console, **options) as tell:
        for chunk in chunks:
            tell(chunk)
    return file.getvalue()


def chunk(step, loss, held_out=None, wave=0):
    loss = np.asarray(loss)
    evaluation = None if held_out is None else {"loss": held_out}
    diverged_at = np.where(np.isfinite(loss).all(-1), -1, step)
    return Progress(step, {"loss": loss}, evaluation, diverged_at, np.full_like(diverged_at, -1), None, wave)


def test_plain_lines_tell_steps_rate_best_and_diverged(swept):
    chunks, result = swept
    lines = told(chunks, 60, 12).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 20/60", "step 40/60", "step 60/60"]
    assert "lane-steps/s" in lines[-1]
    assert "2 of 12 diverged" in lines[-1]
    best = min(np.nanmin(result.history["loss"][:, i : i + 20].mean(1)) for i in (0, 20, 40))
    assert float(re.search(r"best loss (\S+)", lines[-1])[1]) == pytest.approx(best, rel=1e-2)
    held_out = np.nanmin(result.evaluations["loss"])
    assert float(re.search(r"held-out (\S+)", lines[-1])[1]) == pytest.approx(held_out, rel=1e-2)


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_and_long_runs_are_ten_plain_lines(terminal):
    text = told([chunk(step, [[1.0]]) for step in range(1, 1001)], 1000, 1, quiet=True, terminal=terminal)
    assert len(text.splitlines()) == 11
    assert text.splitlines()[-1].startswith("step 1000/1000")
    assert "\x1b" not in text


def test_structures_run_one_after_another():
    # Four lanes, which all diverge in the first chunk, then two.
    chunks = [chunk(50, np.full((4, 50), NAN)), chunk(50, np.ones((2, 50)), wave=1), chunk(100, np.full((2, 50), 0.5), wave=1)]
    for groups in ((4, 2), ()):
        lines = told(chunks, 100, 6, groups=groups).splitlines()
        of = "/2" if groups else ""
        assert lines[0] == ("step 50/100 of wave 1/2" if groups else "step 50/100") + "  4 of 6 diverged"
        assert lines[1] == f"step 50/100 of wave 2{of}  best loss 1  4 of 6 diverged"
        assert re.fullmatch(rf"step 100/100 of wave 2{of}  \S+ lane-steps/s  best loss 0.5  4 of 6 diverged", lines[2])
    live = told(chunks, 100, 6, groups=(4, 2), terminal=True)
    assert "compiling" in live


def test_stopped_lanes_are_told_and_shorten_what_is_left():
    """Of two waves in turn, 4 lanes of which one goes on and 2 that both end."""
    stopped = [np.array([10, 10, 10, -1]), np.array([10, 10])]
    chunks = [chunk(10, np.ones((n, 10)), wave=w) for w, n in enumerate((4, 2))]
    chunks.append(chunk(100, np.ones((4, 90)))._replace(stopped_at=stopped[0]))
    lines = told(chunks, 100, 6, lane_steps=150).splitlines()
    assert lines[-1].startswith("step 100/100  ")
    assert lines[-1].endswith("best loss 1  3 stopped")
    assert len(lines) == 3


def test_runs_without_steps_or_metrics_are_told():
    assert told([chunk(0, np.zeros((2, 0)), np.array([2.0, 3.0]))], 0, 2).splitlines() == ["step 0/0  held-out 2"]
    assert told([chunk(0, np.zeros(0))], 0, 1, terminal=True).endswith("\x1b[2K")
    assert told([], 10, 1) == ""
    assert "step 3/3  diverged" in told([chunk(3, [1.0, NAN, NAN])], 3, 1)


INTERRUPTED = """
import os, signal, threading, time, numpy as np
from lossopt_jax.report.progress import progress
from lossopt_jax.loop import Progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores Ctrl-C
try:
    with progress(100, 8) as tell:
        time.sleep(0.25)
        for step in (10, 20, 30):
            tell(Progress(step, {"loss": np.full((8, 10), 0.5)}, {"loss": np.full(8, 0.25)}, np.full(8, -1), np.full(8, -1), None))
            time.sleep(0.15)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
except KeyboardInterrupt:
    print("stopped")
"""


def test_the_live_bar_on_a_terminal_and_ctrl_c():
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm-256color", "COLUMNS": "80"}
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert child.wait(10) == 0
    text = seen.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert plain.index("compiling") < plain.index("step 10/100")
    for words in ("30%", "lane-steps/s", "best loss 0.5", "held-out 0.25", "left"):
        assert words in plain
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 80
    # The cursor is back, the bar is erased, and what is printed next stands on a line of its own.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.endswith("\x1b[2Kstopped\r\n")


# Pictures


def history_of(lanes, steps, ends=None, fill=None):
    """Losses that fall at different speeds; `ends`: lane -> the step after which it is NaN."""
    t = np.arange(steps)
    loss = np.exp(-t * np.linspace(1, 6, lanes)[:, None] / max(1, steps)) * 2 + 0.01 if fill is None else np.full((lanes, steps), fill)
    for lane, end in (ends or {}).items():
        loss[lane, end:] = NAN
    return {"loss": loss.astype(np.float32), "learning_rate": np.broadcast_to(np.linspace(0.1, 0, steps), (lanes, steps))}


def rows_of(trials, numbers, *, dead=(), spread=False, metric="held_out_loss"):
    rng = np.random.default_rng(0)
    kinds = [lo.log_uniform(1e-5, 1.0), lo.uniform(0, 0.99), lo.int_uniform(0, 7), lo.choice([0.0, 0.1, 0.4]), lo.log_uniform(0.02, 0.1)]
    space = {f"optimizer.number_{i}": kinds[i % 5] for i in range(numbers)}
    rows = []
    for i in range(trials):
        row = {"trial": i, **{path: float(d.quantile(rng.random(1))[0]) for path, d in space.items()}}
        value = NAN if i in dead else 0.05 + 3 * rng.random() ** 4
        rows.append(row | {"status": "diverged" if i in dead else "ok", metric: value} | ({f"{metric}_sem": 0.3 * value} if spread else {}))
    return rows, space


def drawn(figure):
    """The figure drawn to the end, with its texts checked not to lie over one another."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for axis in figure.axes for text in (axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label)]
    texts += [text for legend in [*figure.legends, *(a.get_legend() for a in figure.axes)] if legend for text in legend.get_texts()]
    texts += [figure._suptitle] if figure._suptitle else []
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    for i, (name, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, name
        assert not [other for other, b in boxes[i + 1 :] if box.overlaps(b)], name
    return figure


def points(axis, label):
    (found,) = [c for c in axis.collections if str(c.get_label()).startswith(label) or str(c.get_label()).endswith(label)]
    return np.asarray(found.get_offsets())


@pytest.mark.parametrize(
    ("lanes", "steps", "ends", "fill"),
    [
        (1, 0, {}, None),
        (1, 1, {}, None),
        (1, 100, {0: 40}, None),
        (5, 60, dict.fromkeys(range(5), 20), None),
        (5, 60, {}, NAN),
        (2, 20, {}, -3.0),
        (2, 20, {}, 0.0),
        (1000, 500, dict.fromkeys(range(0, 900, 50), 200), None),
    ],
)
def test_curves_of_any_shape(lanes, steps, ends, fill):
    history = history_of(lanes, steps, ends, fill)
    held_out = {"loss": history["loss"][:, -1:] if steps else np.full((lanes, 1), 2.3), "accuracy": np.ones((lanes, 1))}
    figure = drawn(plots.curves_figure(history, held_out, np.array([steps]), title="what $x_ was trained"))
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == min(5, lanes if steps and fill is not NAN else lanes * (not steps))
    if ends:
        crosses = points(figure.axes[0], "diverged" if lanes > 1 else f"diverged at step {ends[0] - 1}")
        np.testing.assert_array_equal(np.sort(crosses[:, 0]), np.sort([end - 1 for end in ends.values()]))
        low, high = figure.axes[0].get_ylim()
        assert ((low <= crosses[:, 1]) & (crosses[:, 1] <= high)).all()


def test_curves_highlight_the_best_with_their_labels(swept):
    _, result = swept
    best = [row["trial"] * 2 for row in result.table()[:3]]
    arguments = result.history, result.evaluations, result.evaluation_steps, result.diverged_at
    figure = drawn(plots.curves_figure(*arguments, best=best, labels=["one", "two", "three"], title="sweep"))
    loss, held_out, rate = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["one", "two", "three", "2 diverged"]
    assert loss.get_yscale() == "log"
    np.testing.assert_allclose(held_out.lines[0].get_ydata(), result.evaluations["loss"][best[0]])
    np.testing.assert_allclose(rate.lines[1].get_ydata(), result.history["learning_rate"][best[1]])
    np.testing.assert_array_equal(np.sort(points(loss, "diverged")[:, 0]), result.diverged_at[result.diverged_at >= 0])
    assert len(loss.collections[0].get_segments()) == 12 - 3  # the other lanes are all there
    # A best lane that has nothing to show takes its label with it.
    figure = plots.curves_figure(*arguments, best=[best[0]], labels=["one"])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "2 diverged"]
    # Of a recipe all seeds are drawn in its colour, named once, and the scale is for all of them.
    pairs = [(0, 1), (2, 3)]
    figure = plots.curves_figure(*arguments, best=pairs, labels=["one", "two"])
    loss = figure.axes[0]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["one", "two", "2 diverged"]
    assert [line.get_color() for line in loss.lines] == [plots.COLOURS[0]] * 2 + [plots.COLOURS[1]] * 2
    for line, lane in zip(loss.lines, (0, 1, 2, 3), strict=True):
        assert loss.get_ylim()[0] <= np.nanmin(line.get_ydata()), lane
    assert len(loss.collections[0].get_segments()) == 12 - 4
    figure = plots.curves_figure(history_of(2, 30, {0: 0}), {}, np.array([30]), best=[0, 1], labels=["dead", "alive"])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["alive", "1 diverged"]


def test_curves_smooth_by_the_mean_of_a_window():
    loss = np.arange(200.0) % 7
    figure = plots.curves_figure({"loss": loss}, {}, np.array([200]))
    expected = [loss[max(0, i - 3) : i + 1].mean() for i in range(200)]  # a fiftieth of the steps
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected, rtol=1e-12)
    assert len(figure.axes) == 1  # without held-out data and learning rates no empty panels


@pytest.mark.parametrize(
    ("trials", "numbers", "dead", "spread"),
    [
        (1, 1, (), False),
        (64, 1, (3, 9), True),
        (64, 6, (), True),
        (20, 4, range(20), False),
        (999, 5, range(99), False),
        (4, 0, (1,), False),
    ],
)
def test_sweeps_of_any_shape(trials, numbers, dead, spread):
    rows, space = rows_of(trials, numbers, dead=dead, spread=spread)
    figure = drawn(plots.sweep_figure(rows, space, "held_out_loss", title=f"{trials} trials"))
    assert len(figure.axes) == max(1, numbers)
    for axis in figure.axes:
        if len(dead):
            crosses = points(axis, "diverged")
            assert len(crosses) == len(dead)
            assert set(crosses[:, 1]) == {axis.get_ylim()[1]}
        if len(dead) < trials:
            star = points(axis, "best")[0]
            assert star[1] == min(row["held_out_loss"] for row in rows if row["status"] == "ok")
            assert len(points(axis, "trial")) == trials - len(dead)
    if numbers:
        noted = plots.sweep_figure(rows, space, notes={next(iter(space)): ["a note"]})
        assert [axis.get_xlabel().partition("\n")[2] for axis in noted.axes] == ["a note"] + [""] * (numbers - 1)
        assert figure.axes[0].get_xscale() == "log"
        best = min(rows, key=lambda row: row["held_out_loss"] if row["status"] == "ok" else math.inf)
        if len(dead) < trials:
            assert points(figure.axes[0], "best")[0, 0] == best["optimizer.number_0"]


def test_sweep_of_an_accuracy_and_of_an_outlier(swept):
    rows, space = rows_of(12, 2, dead=(4,), metric="held_out_accuracy")
    figure = drawn(plots.sweep_figure(rows, space, "held_out_accuracy"))
    axis = figure.axes[0]
    assert points(axis, "best")[0, 1] == max(row["held_out_accuracy"] for row in rows if row["status"] == "ok")
    assert points(axis, "diverged")[0, 1] == axis.get_ylim()[0]
    rows, space = rows_of(12, 1)
    rows[5]["held_out_loss"] = 1e20
    axis = drawn(plots.sweep_figure(rows, space)).axes[0]
    assert len(points(axis, "off the scale")) == 1
    assert axis.get_ylim()[1] < 100
    for low in (0.0, -1.0):  # neither of which a logarithm has
        rows[2]["held_out_loss"] = low
        axis = drawn(plots.sweep_figure(rows, space)).axes[0]
        assert len(points(axis, "off the scale")) == 1
        star = points(axis, "best")[0]
        assert star[0] == rows[2]["optimizer.number_0"]
        assert axis.get_ylim()[0] <= star[1] < axis.get_ylim()[1] < 100
    result = swept[1]
    figure = drawn(plots.sweep_figure(result.table(), result.trials.space, "held_out_loss"))
    assert len(points(figure.axes[0], "diverged")) == 1
    assert drawn(plots.sweep_figure([], space)).axes


def test_pictures_are_files_and_the_report_loads_nothing_heavy(tmp_path):
    code = """
import sys
from lossopt_jax.report import folder, plots, progress, tables
assert not {"jax", "matplotlib", "optax", "flax"} & set(sys.modules), "training code or matplotlib came with the report"
import numpy as np
plots.write_curves("c.png", {"loss": np.ones(5), "learning_rate": np.ones(5)}, {"loss": np.ones(1)}, np.array([5]))
plots.write_sweep("s.png", [{"trial": 0, "status": "ok", "held_out_loss": 1.0}], {}, "held_out_loss", title="t")
assert "matplotlib.pyplot" not in sys.modules and "jax" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, env=environment)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.png", "s.png"]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
