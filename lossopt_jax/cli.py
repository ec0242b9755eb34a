"""The command line. JAX is imported inside the commands, so that help answers at once."""

import math
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import platformdirs
import typer

from .watch import ended_at_once, together

if TYPE_CHECKING:
    from .config import Experiment
    from .train import Run

MONTH = 30 * 24 * 3600.0  # seconds
GO_ON = "stopped by Ctrl-C; what was saved of this run is gone on with by --resume and its --out"

app = typer.Typer(
    help="Losses, optimizers and learning-rate schedules for JAX: train one recipe, or sweep a hundred as lanes of one program.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="A TOML file such as configs/digits_mlp.toml.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; may be repeated.")]
Out = Annotated[Path | None, typer.Option(help="The folder to write; runs/<name>-<time> unless given.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what a folder holds of this run; a finished one is left as it is.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over the results in a folder that exists.")]
SaveEvery = Annotated[float, typer.Option(metavar="SECONDS", help="How often what is done so far is saved, for --resume.", min=0)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain lines, no live display.")]
Join = Annotated[bool, typer.Option("--join", help="Share the sweep with all processes that are given the same --out and --join.")]
Storage = Annotated[str | None, typer.Option(metavar="URL", help="Where Optuna's dashboard is to find the search.", show_default=False)]
Coordinator = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Process 0 of a sweep over several hosts.", show_default=False)]
Plan = Annotated[str | None, typer.Option(metavar="devices=N,width=N", help="How lanes lie on devices.", show_default=False)]


@app.command()
def train(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Train the one recipe of a config."""
    with _one_line_errors(), _interruptible() as stop_if_interrupted:
        _prepare_jax()
        from . import config as configs
        from .report import folder, progress, results
        from .train import fit

        experiment = configs.load(config, set_ or (), sweep=False)
        place = _claimed(experiment, out, {"what": "train"}, resume=resume, overwrite=overwrite)
        typer.echo(f"{experiment.name}: 1 recipe, {experiment.run.steps} steps of {experiment.run.batch_size} examples")
        with progress.progress(experiment.run.steps, 1, quiet=quiet) as tell:
            fitted = fit(
                experiment.model,
                experiment.recipe,
                train=experiment.task.train,
                evaluate=experiment.task.evaluate,
                run=experiment.run,
                on_chunk=[tell, stop_if_interrupted],
                checkpoint=place / folder.STATE,
                save_every=save_every,
            )
        results.show_run(fitted)  # before writing: a full disk must not hide what was found
        with _shown_if_not_written(place):
            results.write_run(place, experiment, fitted)
        folder.remove_state(place)
        typer.echo(place)


@app.command()
def sweep(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    save_every: SaveEvery = 30.0,
    plan: Plan = None,
    join: Join = False,
    storage: Storage = None,
    audit: Annotated[int, typer.Option(metavar="K", help="Run K random lanes again, alone, and say how far they differ.", min=0)] = 0,
    coordinator: Coordinator = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help="How many processes there are.", show_default=False)] = None,
    process: Annotated[int | None, typer.Option(metavar="I", help="Which of them this is, from 0.", show_default=False)] = None,
) -> None:
    """Train many recipes at once, drawn from the sweep table of a config."""
    with ended_at_once(), _one_line_errors(), _interruptible() as stop_if_interrupted, ExitStack() as stack:
        _prepare_jax()
        if (coordinator, processes, process) != (None, None, None):
            stack.enter_context(together(coordinator, processes, process))
        from . import config as configs
        from .hosts import check_alike, from_first
        from .report import folder, progress, results
        from .sweep import audit as audited
        from .sweep import by_structure, checked_plan, plan_lanes, search, sweep, work

        experiment = configs.load(config, set_ or ())
        if experiment.trials is None:
            raise configs.ConfigError(f"{config} has no [sweep] table: it needs one with a space, or use lossopt train")
        trials, seeds, run, stop = experiment.trials, experiment.seeds, experiment.run, experiment.stop
        asked = experiment.search
        rounds = 1 if asked is None else asked.rounds
        count = len(trials) * rounds
        lanes = count * seeds
        layout = checked_plan(configs.parse_plan(plan)) if plan else None
        if join and (out is None or overwrite):
            raise configs.ConfigError("--join needs the --out that all processes share, without --overwrite")
        if join and (stop is not None or asked is not None):
            raise configs.ConfigError("--join can neither search nor stop trials early: each process sees its own trials only")
        if storage is not None and asked is None:
            raise configs.ConfigError(f"--storage is for a search: sweep.sampler must be one of {', '.join(configs.SEARCHES)}")
        if join and coordinator is not None:
            raise configs.ConfigError("--join is for processes that run by themselves, --coordinator for those that run as one")
        check_alike({"config": str(experiment.resolved), "--plan": str(layout)})
        place = from_first(lambda: _claimed(experiment, out, {"what": "sweep"}, resume=resume, overwrite=overwrite, join=join))
        many = f" x {seeds} seeds = {lanes} lanes" if seeds > 1 else f" = {lanes} lanes"
        sizes = trials.space.get("run.batch_size")
        examples = " or ".join(f"{size:.0f}" for size in (sizes.arguments if sizes else [run.batch_size]))
        typer.echo(f"{experiment.name}: {count} recipes{many}, {run.steps} steps of {examples} examples, on ", nl=False)
        data: dict[str, Any] = {"train": experiment.task.train, "evaluate": experiment.task.evaluate, "run": run, "seeds": seeds}
        layout = layout or plan_lanes(experiment.build, trials, **data, stop=stop)
        typer.echo(layout)
        groups = by_structure(trials)
        if len(groups) > 1 and asked is None:
            results.show_structures([(trials.labels(group[0]), len(group), seeds * len(group)) for group in groups])
        if asked is not None:
            typer.echo(f"searched in {rounds} rounds of {len(trials)}: a Sobol sequence, then what {asked.sampler} suggests")
        if stop is not None:
            by = "trained as a" if stop.name == "population" else "stopped early by"
            typer.echo(f"{'each round ' if asked else ''}{by} {stop.told(len(trials), run.steps)}")
        lane_steps = None if stop is None else rounds * seeds * stop.lane_steps(len(trials), run.steps)
        data |= {"plan": layout, "checkpoint": place / folder.STATE, "save_every": save_every}
        with progress.progress(run.steps, lanes, quiet=quiet, lane_steps=lane_steps) as tell:
            if join:
                work(experiment.build, trials, **data, on_chunk=[tell, stop_if_interrupted])
            elif asked is not None:
                how: dict[str, Any] = {"count": count, "rounds": rounds, "sampler": asked.optuna_sampler(), "seed": asked.seed}
                how |= {"storage": storage, "name": experiment.name, "stop": stop, "on_chunk": [tell, stop_if_interrupted]}
                swept = search(experiment.build, experiment.recipe, asked.space, **data, **how)
            else:
                swept = sweep(experiment.build, trials, **data, stop=stop, on_chunk=[tell, stop_if_interrupted])
        with _the_one_to_write(place, experiment) if join else nullcontext(True) as here:
            if here:
                swept = sweep(experiment.build, trials, **data) if join else swept
                results.show_sweep(swept)
                with _shown_if_not_written(place):
                    from_first(lambda: results.write_sweep(place, experiment, swept))
                from_first(lambda: folder.remove_state(place))
                if audit:
                    given = {key: data[key] for key in ("train", "evaluate", "run")}
                    results.show_audit(audited(experiment.build, swept, **given, count=audit))
        if (place / "best.toml").exists():
            typer.echo(f"the best recipe by itself: lossopt train {place / 'best.toml'}")
        typer.echo(place)


@app.command("find-lr")
def find_lr(
    config: Config,
    low: Annotated[float, typer.Option(help="The lowest rate.")] = 1e-7,
    high: Annotated[float, typer.Option(help="The highest rate.")] = 10.0,
    count: Annotated[int, typer.Option(help="How many rates, evenly apart on a logarithmic scale.")] = 64,
    seeds: Annotated[int, typer.Option(help="How many seeds every rate is tried under.")] = 3,
    steps: Annotated[int | None, typer.Option(help="The budget of every rate; run.steps unless given.", show_default=False)] = None,
    range_test: Annotated[bool, typer.Option("--range-test", help="One run whose rate grows instead (Smith 2017).")] = False,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Find the learning rate of a config: many constant rates at once, each trained for its steps."""
    with _one_line_errors(), _interruptible() as stop_if_interrupted:
        _prepare_jax()
        from . import config as configs
        from . import lr_finder
        from .report import finding, folder, progress

        lr_finder.check_range(low, high, count, seeds)
        experiment = configs.load(config, set_ or (), sweep=False)
        # Not an override: the schedule, which is put aside while looking, need not fit the shorter run.
        run = experiment.run if steps is None else replace(experiment.run, steps=steps)
        asked = {"what": "range-test" if range_test else "find-lr", "--low": low, "--high": high, "--steps": run.steps}
        asked |= {} if range_test else {"--count": count, "--seeds": seeds}
        last = "range_test.png" if range_test else "find_lr.png"
        place = _claimed(experiment, out, asked, resume=resume, overwrite=overwrite, last=last)
        if range_test:
            _range_test(experiment, place, run, low, high, [stop_if_interrupted])
            return
        many = f" x {seeds} seeds = {count * seeds} lanes" if seeds > 1 else " as lanes"
        typer.echo(f"{experiment.name}: {count} rates from {low:g} to {high:g}{many}, {run.steps} steps of {run.batch_size} examples")
        with progress.progress(run.steps, count * seeds, quiet=quiet) as tell:
            found = lr_finder.find_lr(
                experiment.model,
                experiment.recipe,
                train=experiment.task.train,
                evaluate=experiment.task.evaluate,
                run=run,
                low=low,
                high=high,
                count=count,
                seeds=seeds,
                on_chunk=[tell, stop_if_interrupted],
                checkpoint=place / folder.STATE,
                save_every=save_every,
            )
        finding.show_finding(found)
        with _shown_if_not_written(place):
            finding.write_finding(place, experiment, found)
        folder.remove_state(place)
        typer.echo(place)


@app.command()
def tune(
    config: Config,
    minutes: Annotated[float | None, typer.Option(help="The budget as a time, beside compiling.", show_default=False)] = None,
    lane_steps: Annotated[int | None, typer.Option(help="The budget as steps of all lanes; 20 x run.steps.", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(help="Under how many new seeds the winner meets the recipe as it is given.")] = 3,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    save_every: SaveEvery = 30.0,
) -> None:
    """Tune the recipe of a config: each optimizer's learning rate, a halving sweep around them, the winner against the recipe."""
    with _one_line_errors(), _interruptible() as stop_if_interrupted, ExitStack() as bar:
        _prepare_jax()
        from . import config as configs
        from .recipe import numbers
        from .report import folder, progress, tuning
        from .tune import Stage, tune

        experiment = configs.load(config, set_ or ())
        swept = {} if experiment.trials is None else experiment.trials.space
        known = numbers(experiment.recipe)
        place = _claimed(experiment, out, {"what": "tune"}, resume=resume, overwrite=overwrite)

        def on_stage(stage: Stage) -> list[Callable[[Any], None]]:
            bar.close()
            typer.echo(f"{stage.name}: {stage.lanes} lanes, {stage.steps} steps of {experiment.run.batch_size} examples")
            shown = progress.progress(stage.steps, stage.lanes, quiet=quiet, lane_steps=stage.lane_steps)
            return [bar.enter_context(shown), stop_if_interrupted]

        tuned = tune(
            experiment.model,
            experiment.recipe,
            train=experiment.task.train,
            evaluate=experiment.task.evaluate,
            run=experiment.run,
            space={path: what for path, what in swept.items() if path in known},
            lane_steps=lane_steps,
            minutes=minutes,
            seeds=seeds,
            on_stage=on_stage,
            checkpoint=place / folder.STATE,
            save_every=save_every,
        )
        bar.close()
        tuning.show_tuned(tuned)
        with _shown_if_not_written(place):
            tuning.write_tuned(place, experiment, tuned)
        folder.remove_state(place)
        if tuned.final is not None:
            typer.echo(f"train it by itself: lossopt train {place / 'best.toml'}")
        typer.echo(place)


@app.command()
def diagnose(folder: Annotated[Path, typer.Argument(help="What train or sweep wrote, such as runs/mine.", show_default=False)]) -> None:
    """Say what is wrong with a run, or with each lane of a sweep, and what to try next."""
    with _one_line_errors():
        _prepare_jax()
        from . import config as configs
        from .diagnose import diagnose
        from .report.diagnosis import show_diagnosis

        targets = None
        with suppress(configs.ConfigError):  # a folder that no config made has its curves all the same
            targets = configs.load(folder / "config.toml").task.train[1]
        show_diagnosis(diagnose(folder, targets=targets))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs or sweeps, two or more.", show_default=False)],
) -> None:
    """Put finished runs side by side: what differs, which is better and how sure that is."""
    with _one_line_errors():
        _prepare_jax()
        from .compare import compare
        from .report import comparison

        comparison.show(compare(runs))


@app.command()
def recommend(
    kind: Annotated[str | None, typer.Argument(help="regression, binary, multiclass, segmentation, tokens ...", show_default=False)] = None,
    family: Annotated[str | None, typer.Option(help="mlp, cnn, rnn, transformer or unet.", show_default=False)] = None,
    data: Annotated[Path | None, typer.Option(help="A CSV file with a header: its kind is found out.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="The column of the CSV file to predict.", show_default=False)] = None,
    write: Annotated[Path | None, typer.Option(help="Write the config here instead of printing it.", show_default=False)] = None,
) -> None:
    """Recommend a loss, an optimizer and a schedule for a kind of task or for data, with reasons and a config that runs."""
    with _one_line_errors():
        _prepare_jax()
        from .recommend import KINDS, recommend, recommend_csv
        from .report import folder

        if (data is None) != (target is None):
            raise ValueError("--data and --target go together: the file, and the column of it to predict")
        if kind is None and data is None:
            raise ValueError(f"give a kind of task ({', '.join(KINDS)}), or --data and --target")
        table = None
        if data is not None and target is not None:
            found, table = recommend_csv(str(data), target, kind, family)
        else:
            found = recommend(kind, family=family)
        typer.echo(found)
        try:
            config = found.config(table)
        except ValueError as error:
            typer.secho(f"no config: {error}", fg=typer.colors.YELLOW)
            return
        if write is None:
            typer.echo(f"\n{config}")
            return
        if write.exists():
            raise FileExistsError(f"{write} exists: choose another file to --write")
        folder.write_text(write, config)
        typer.echo(f"lossopt train {write}, lossopt sweep {write}, lossopt tune {write}")


@app.command()
def evidence(
    tasks: Annotated[str | None, typer.Option(help="Only these, such as digits_mlp,digits_cnn.", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(help="Under how many new seeds each combination runs at the best of its rates.")] = 5,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure what recommend recommends against its rivals on real tasks: the table that it cites, and performance profiles."""
    with _one_line_errors(), _interruptible() as stop_if_interrupted, ExitStack() as bar:
        _prepare_jax()
        from . import rivals
        from .measured import Row
        from .recipe import nearest
        from .report import folder, progress, rivalry

        names = list(rivals.CONTESTS) if tasks is None else tasks.split(",")
        for name in names:
            if name not in rivals.CONTESTS:
                raise ValueError(f"--tasks: no task {name!r}; {nearest(name, rivals.CONTESTS)}")
        place = folder.claim(out or folder.default_folder("evidence"), overwrite=overwrite, resume=resume)

        def on_stage(lanes: int, steps: int) -> list[Callable[[Any], None]]:
            bar.close()
            return [bar.enter_context(progress.progress(steps, lanes, quiet=quiet)), stop_if_interrupted]

        rows: list[Row] = []
        for name in names:
            done = rivalry.finished_rows(place, name, rivals.CONTESTS[name], seeds) if resume else None
            typer.echo(f"{name}: {'done already' if done is not None else rivals.CONTESTS[name].summary(seeds)}")
            if done is None:
                done = rivals.evidence(name, seeds=seeds, on_stage=on_stage)
                bar.close()
                rivalry.write_rows(place, name, rivals.CONTESTS[name], seeds, done)
            rivalry.show_rows(done)
            rows += done
        rivalry.write_evidence(place, rows, " ".join(["lossopt evidence", *([f"--tasks {tasks}"] if tasks else []), f"--seeds {seeds}"]))
        typer.echo(place)


@app.command("list")
def list_(
    room: Annotated[str | None, typer.Argument(help="losses, optimizers or schedules [default: all].", show_default=False)] = None,
) -> None:
    """List the losses, optimizers and schedules, with their numbers and defaults."""
    with _one_line_errors():
        from importlib import import_module

        from .config import ConfigError
        from .recipe import REQUIRED, nearest, parameters

        rooms = ("losses", "optimizers", "schedules")
        if room is not None and room not in rooms:
            raise ConfigError(f"there is no room {room!r}; {nearest(room, rooms)}")
        for name in rooms if room is None else (room,):
            module = import_module(f"lossopt_jax.{name}")
            typer.secho(name, bold=True)
            for item in module.__all__:
                known = parameters(getattr(module, item)).items()
                typer.echo(f"  {item}({', '.join(key if p.default is REQUIRED else f'{key}={_shown(p.default)}' for key, p in known)})")


def main() -> None:
    """The console script."""
    app(prog_name="lossopt")


def _range_test(experiment: "Experiment", place: Path, run: "Run", low: float, high: float, on_chunk: list[Callable[[Any], None]]) -> None:
    """The range test of a config, shown and written."""
    from . import lr_finder
    from .range_test import lr_range_test
    from .report import finding, folder

    typer.echo(f"{experiment.name}: one run from rate {low:g} to {high:g} in {run.steps} steps of {run.batch_size} examples")
    data: dict[str, Any] = {"train": experiment.task.train, "run": run, "low": low, "high": high}
    test = lr_range_test(experiment.model, experiment.recipe, **data, on_chunk=on_chunk)
    line = lr_finder.config_line(*lr_finder.with_rate(experiment.recipe, test.valley)) if math.isfinite(test.valley) else ""
    finding.show_range_test(test, line)
    with _shown_if_not_written(place):
        finding.write_range_test(place, experiment, test, line)
    folder.remove_state(place)
    typer.echo(place)


def _claimed(
    experiment: "Experiment",
    out: Path | None,
    asked: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    join: bool = False,
    last: str = "curves.png",
) -> Path:
    """The folder to write, with its config in it; ends the command where a resumed folder is finished.

    asked, last: as of `results.finished`.
    """
    from .report import folder, results

    place = folder.claim(out or folder.default_folder(experiment.name), overwrite=overwrite, resume=resume, join=join)
    resume = resume or join
    if resume and results.finished(place, experiment.resolved, asked, last):
        typer.echo(f"{place} is finished; nothing to do")
        raise typer.Exit
    if not resume:
        folder.remove_state(place)
    results.write_config(place / folder.STATE, asked | experiment.resolved)
    if not overwrite:  # what is to be overwritten stays whole until there is something to put in its place
        results.write_config(place, experiment.resolved)
    return place


@contextmanager
def _the_one_to_write(place: Path, experiment: "Experiment") -> Iterator[bool]:
    """Of the processes that shared a sweep one writes its results; the others wait for it, or for its death."""
    from .report import folder, results
    from .sweep import Claims

    while not results.finished(place, experiment.resolved, {"what": "sweep"}):
        with Claims(place / folder.STATE).held("results") as still_held:
            if still_held is not None:
                yield True
                return
        time.sleep(1)
    yield False


@contextmanager
def _shown_if_not_written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{error}; what was found is printed above, and --resume --out {place} writes it when that can be done") from None


@contextmanager
def _interruptible() -> Iterator[Callable[[Any], None]]:
    """A callback that stops the run after Ctrl-C, should the exception be lost: Python drops one that is raised inside a C callback."""
    interrupted = False

    def on_signal(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def stop_if_interrupted(_: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop_if_interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_jax() -> None:
    """What JAX reads when it is imported; whatever the user has set stays."""
    # On CPU each core is then a device that lanes can be spread over.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # What a command compiled, the next one of the same structure loads. A machine's own, since the code is for its processor.
        kept = Path(platformdirs.user_cache_dir("lossopt_jax", appauthor=False), f"xla-{platform.node()}")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        with suppress(OSError):
            for old in [file for file in kept.glob("*") if time.time() - file.stat().st_mtime > MONTH]:
                old.unlink()
        # An entry that a killed process left half written is compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


def _shown(default: Any) -> str:
    return default.__name__ if callable(default) else str(default)


@contextmanager
def _one_line_errors(stopped: str = GO_ON) -> Iterator[None]:
    """What the user can mend is one line on standard error: exit code 2 for a wrong config or data, 1 for a folder, 130 for Ctrl-C."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        own = category.__module__.startswith("lossopt_jax.")
        typer.secho(f"lossopt: {message}", fg=typer.colors.YELLOW, err=True) if own else before(message, category, *where)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    except (ValueError, TypeError) as error:
        code, message = 2, str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough: `lossopt list | head`
        return
    except OSError as error:
        code, message = (2 if isinstance(error, FileExistsError) else 1), str(error)
    except KeyboardInterrupt:
        code, message = 130, stopped
    else:
        return
    finally:
        warnings.showwarning = before
    typer.secho(f"lossopt: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
