"""The command line. JAX is imported inside the commands, so that help answers at once."""

import math
import shlex
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import claimed, interruptible, one_line_errors, prepare_jax, the_one_to_write, write_results
from .watch import ended_at_once, together

if TYPE_CHECKING:
    from .config import Experiment
    from .loop import Run

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
Storage = Annotated[str | None, typer.Option(metavar="URL", help="Where Optuna's dashboard sees it, named as --out.", show_default=False)]
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
    with one_line_errors() as made, interruptible() as stop_if_interrupted:
        prepare_jax()
        from . import config as configs
        from .report import folder, progress, results
        from .train import fit

        experiment = configs.load(config, set_ or (), sweep=False)
        place = claimed(made, experiment, out, {"what": "train"}, resume=resume, overwrite=overwrite)
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
        results.show_run(fitted)
        write_results(place, lambda: results.write_run(place, experiment, fitted))
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
    with ended_at_once(), one_line_errors() as made, interruptible() as stop_if_interrupted, ExitStack() as stack:
        prepare_jax()
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
        layout = None if plan is None else checked_plan(configs.parse_plan(plan))
        if join and (out is None or overwrite):
            raise configs.ConfigError("--join needs the --out that all processes share, without --overwrite")
        if join and (stop is not None or asked is not None):
            raise configs.ConfigError("--join can neither search nor stop trials early: each process sees its own trials only")
        if storage is not None and asked is None:
            raise configs.ConfigError(f"--storage is for a search: sweep.sampler must be one of {', '.join(configs.SEARCHES)}")
        if join and coordinator is not None:
            raise configs.ConfigError("--join is for processes that run by themselves, --coordinator for those that run as one")
        check_alike({"config": str(experiment.resolved), "--plan": str(layout)})
        place = from_first(lambda: claimed(made, experiment, out, {"what": "sweep"}, resume=resume, overwrite=overwrite, join=join))
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
                how |= {"storage": storage, "name": place.name, "stop": stop, "on_chunk": [tell, stop_if_interrupted]}
                swept = search(experiment.build, experiment.recipe, asked.space, **data, **how)
            else:
                swept = sweep(experiment.build, trials, **data, stop=stop, on_chunk=[tell, stop_if_interrupted])
        with the_one_to_write(place, experiment) if join else nullcontext(True) as here:
            if here:
                swept = sweep(experiment.build, trials, **data) if join else swept
                results.show_sweep(swept)
                from_first(lambda: write_results(place, lambda: results.write_sweep(place, experiment, swept)))
                if audit:
                    given = {key: data[key] for key in ("train", "evaluate", "run")}
                    results.show_audit(audited(experiment.build, swept, **given, count=audit))
        if (place / "best.toml").exists():
            typer.echo(f"the best recipe by itself: lossopt train {place / 'best.toml'}")
        typer.echo(place)


@app.command("find-lr")
def find_lr(
    context: typer.Context,
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
    with one_line_errors() as made, interruptible() as stop_if_interrupted:
        prepare_jax()
        from . import config as configs
        from . import lr_finder
        from .report import finding, folder, progress

        lr_finder.check_range(low, high, count, seeds)
        given = [name for name in ("count", "seeds") if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        if range_test and given:
            raise configs.ConfigError(f"--range-test is one run: it takes no --{given[0]}")
        experiment = configs.load(config, set_ or (), sweep=False)
        # Not an override: the schedule, which is put aside while looking, need not fit the shorter run.
        run = experiment.run if steps is None else replace(experiment.run, steps=steps)
        asked = {"what": "range-test" if range_test else "find-lr", "--low": low, "--high": high, "--steps": run.steps}
        asked |= {} if range_test else {"--count": count, "--seeds": seeds}
        last = "range_test.png" if range_test else "find_lr.png"
        place = claimed(made, experiment, out, asked, resume=resume, overwrite=overwrite, last=last)
        if range_test:
            _range_test(experiment, place, run, low, high, [stop_if_interrupted], lambda change: _with_rate(config, set_, change))
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
        if found.config_line:
            typer.echo(_with_rate(config, set_, lr_finder.override(found.path, found.recipe, experiment.recipe)))
        write_results(place, lambda: finding.write_finding(place, experiment, found))
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
    """Tune a config's recipe (or what recommend has for its data): each optimizer's rate, a halving sweep, the winner against it."""
    with one_line_errors() as made, interruptible() as stop_if_interrupted, ExitStack() as bar:
        prepare_jax()
        from . import config as configs
        from .recipe import numbers
        from .recommend import completed
        from .report import folder, progress, tuning
        from .tune import Stage, tune

        given = configs.read(config, set_ or ())
        tables, added = completed(given, configs.task_of)
        if added:
            typer.echo(f"not in {config}, so as lossopt recommend has it for {added}")
        experiment = configs.experiment(tables)
        swept = {} if experiment.trials is None else experiment.trials.space
        known = numbers(experiment.recipe)
        budget = {"--lane-steps": lane_steps, "--minutes": minutes}
        asked = {"what": "tune", "--seeds": seeds} | {name: value for name, value in budget.items() if value is not None}
        place = claimed(made, experiment, out, asked, resume=resume, overwrite=overwrite)
        if left_out := [path for path in swept if path not in known]:
            typer.echo(f"not tuned: {', '.join(left_out)}, a structure of its own for each value: lossopt sweep does that")

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
        write_results(place, lambda: tuning.write_tuned(place, experiment, tuned, asked))
        if tuned.final is not None:
            typer.echo(f"train it by itself: lossopt train {place / 'best.toml'}")
        typer.echo(place)


@app.command()
def diagnose(folder: Annotated[Path, typer.Argument(help="What train, sweep, find-lr or tune wrote.", show_default=False)]) -> None:
    """Say what is wrong with a run, or with each lane of a sweep, and what to try next."""
    with one_line_errors():
        prepare_jax()
        from . import config as configs
        from .diagnose import diagnose
        from .report.diagnosis import show_diagnosis

        targets, wrote = None, _wrote(folder)
        if wrote == "range-test":
            raise ValueError(
                f"{folder} is of a range test, whose rate grows until it fails: train with the rate it gave, and diagnose that"
            )
        if wrote == "tune":
            folder = folder / "sweep"
            typer.echo(f"the sweep of the tuning, {folder}")
        with suppress(configs.ConfigError):  # a folder that no config made has its curves all the same
            targets = configs.load(folder / "config.toml").task.train[1]
        show_diagnosis(diagnose(folder, targets=targets))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs or sweeps, two or more.", show_default=False)],
) -> None:
    """Put finished runs side by side: what differs, which is better and how sure that is."""
    with one_line_errors():
        prepare_jax()
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
    with one_line_errors():
        prepare_jax()
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
            if write is not None:
                raise ValueError(f"no config to write: {error}") from None
            typer.secho(f"no config: {error}", fg=typer.colors.YELLOW)
            return
        if write is None:
            typer.echo(f"\n{config}")
            return
        if write.exists():
            raise FileExistsError(f"{write} exists: choose another file to --write")
        folder.write_text(write, config)
        if config.startswith("#"):  # a template
            typer.echo(config.partition("\n")[0].removeprefix("# ") + "; then:")
        typer.echo(f"lossopt train {write}, lossopt sweep {write}, lossopt tune {write}")


@app.command()
def evidence(
    tasks: Annotated[str | None, typer.Option(help="Only these, such as digits_mlp,digits_cnn.", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(help="Under how many new seeds each combination runs at the best of its rates.", min=2)] = 5,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure what recommend recommends against its rivals on real tasks: the table that it cites, and performance profiles."""
    with one_line_errors(), interruptible() as stop_if_interrupted, ExitStack() as bar:
        prepare_jax()
        from .evidence import CONTESTS, evidence
        from .measured import Row
        from .recipe import nearest
        from .report import evidence as files
        from .report import folder, progress

        names = list(CONTESTS) if tasks is None else tasks.split(",")
        for name in names:
            if name not in CONTESTS:
                raise ValueError(f"--tasks: no task {name!r}; {nearest(name, CONTESTS)}")
        place = folder.claim(out or folder.default_folder("evidence"), overwrite=overwrite, resume=resume)

        def on_stage(lanes: int, steps: int) -> list[Callable[[Any], None]]:
            bar.close()
            return [bar.enter_context(progress.progress(steps, lanes, quiet=quiet)), stop_if_interrupted]

        rows: list[Row] = []
        for name in names:
            done = files.finished_rows(place, name, CONTESTS[name], seeds) if resume else None
            typer.echo(f"{name}: {'done already' if done is not None else CONTESTS[name].summary(seeds)}")
            if done is None:
                done = evidence(name, seeds=seeds, on_stage=on_stage)
                bar.close()
                files.write_rows(place, name, CONTESTS[name], seeds, done)
            files.show_rows(done)
            rows += done
        files.write_evidence(place, rows, " ".join(["lossopt evidence", *([f"--tasks {tasks}"] if tasks else []), f"--seeds {seeds}"]))
        typer.echo(place)


@app.command("list")
def list_(
    room: Annotated[str | None, typer.Argument(help="losses, optimizers or schedules [default: all].", show_default=False)] = None,
) -> None:
    """List the losses, optimizers and schedules, with their numbers and defaults."""
    with one_line_errors():
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


def _with_rate(config: Path, set_: list[str] | None, change: str) -> str:
    """The command that trains a config, as it was changed, with a rate that was found."""
    return "train with it: " + shlex.join(
        ["lossopt", "train", str(config), *(word for s in [*(set_ or ()), change] for word in ("--set", s))]
    )


def _range_test(
    experiment: "Experiment",
    place: Path,
    run: "Run",
    low: float,
    high: float,
    on_chunk: list[Callable[[Any], None]],
    command: Callable[[str], str],
) -> None:
    """The range test of a config, shown and written. command: which trains with a change of the config."""
    from . import lr_finder
    from .range_test import lr_range_test
    from .report import finding

    typer.echo(f"{experiment.name}: one run from rate {low:g} to {high:g} in {run.steps} steps of {run.batch_size} examples")
    data: dict[str, Any] = {"train": experiment.task.train, "run": run, "low": low, "high": high}
    test = lr_range_test(experiment.model, experiment.recipe, **data, on_chunk=on_chunk)
    path, recipe = lr_finder.with_rate(experiment.recipe, test.valley)
    line = lr_finder.config_line(path, recipe) if math.isfinite(test.valley) else ""
    finding.show_range_test(test, line)
    for sentence in test.verdicts.values():
        typer.echo(f"note: {sentence}")
    if line:
        typer.echo(command(lr_finder.override(path, recipe, experiment.recipe)))
    write_results(place, lambda: finding.write_range_test(place, experiment, test, line))
    typer.echo(place)


def _wrote(folder: Path) -> str | None:
    """The command that wrote a folder, by its summary; None where it does not say."""
    import json

    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("what")
    return None


def _shown(default: Any) -> str:
    return default.__name__ if callable(default) else str(default)


if __name__ == "__main__":
    main()
