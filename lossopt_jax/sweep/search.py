"""Search in rounds: each round's lanes are asked of an Optuna sampler that has been told of all rounds before."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..hosts import from_first
from ..loop import Callbacks, Progress, Run
from ..models import Model
from ..recipe import Recipe
from .lanes import LanePlan
from .metrics import HIGHER_IS_BETTER, Caution, caution, incomparable
from .plan import MeasuredPlan, plan_lanes
from .population import Population, Rule
from .result import Swept
from .run import check_width, finished, prepared, together
from .spaces import Distribution, Space, listed_in
from .trials import Trials, columns_of, rows_of, trials_of

QUANTILE = " (quantile)"  # behind the path of a normal number, as Optuna has it
FOLDER = "checkpoint"  # of a stored study: whose it is


def search(
    model: Model | Callable[..., Model],
    recipe: Recipe,
    space: Space,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    count: int = 64,
    rounds: int = 4,
    sampler: Any = None,
    seed: int = 0,
    seeds: int = 1,
    plan: LanePlan | None = None,
    stop: Rule | None = None,
    on_chunk: Callbacks = (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
    storage: str | None = None,
    name: str = "search",
) -> Swept:
    """`count` trials in `rounds` sweeps: the first from a Sobol sequence, each later one where the sampler expects the best (needs optuna).

    space: as in `sample`. sampler: any of `optuna.samplers`, by default TPE (Watanabe 2023, arXiv:2304.11127) seeded with `seed`.
    The study is kept in memory and told of a round at once: the metric that trials are ranked by, the mean over seeds; of a diverged
    trial infinity, worse than any number, so that the sampler keeps away and no study has it as its best; of one stopped early its
    state then, as pruned. Optuna knows no normal distribution: of such a number it sees the quantile, as "<path> (quantile)".
    A sampler that has nothing more to suggest, such as an exhausted GridSampler, ends the search early, with a `Caution`.
    storage: an Optuna URL such as "sqlite:///x.db", to which the study is written as `name` after each round, for its dashboard;
    ValueError where it has a study of that name from another search. One that an earlier search with this very checkpoint folder wrote,
    of which nothing is left there, is moved aside, to `name` with a number behind it.
    The rest as in `sweep`. With a checkpoint and a sampler that is seeded a search goes on to the same trials.
    """
    for key, given in (("count", count), ("rounds", rounds), ("seeds", seeds)):
        if isinstance(given, bool) or not isinstance(given, int | np.integer):
            raise TypeError(f"search: {key} must be a whole number, got {given!r}")
    if rounds < 1 or count < rounds or count % rounds:
        raise ValueError(f"search: count must be a multiple of rounds, got count={count} and rounds={rounds}")
    if seeds < 1:
        raise ValueError(f"search: seeds must be at least 1, got {seeds}")
    if isinstance(stop, Population):
        raise ValueError("search: a population changes the numbers that the sampler has asked for: use lo.sweep")
    optuna = _optuna()
    if sampler is not None and not isinstance(sampler, optuna.samplers.BaseSampler):
        raise TypeError(f"search: sampler must be one of Optuna's, such as optuna.samplers.TPESampler(seed=0), got {sampler!r}")
    store = None
    if storage is not None and jax.process_index() == 0:
        store = _opened(optuna, storage, name, checkpoint)
    columns = columns_of(recipe, space)
    if isinstance(sampler, optuna.samplers.CmaEsSampler) and (listed := listed_in(space)):
        warnings.warn(f"search: CMA-ES knows no choice, so its fallback draws {', '.join(listed)}", Caution, stacklevel=2)
    rows = rows_of(columns, count // rounds, seed)
    plan = plan or plan_lanes(model, trials_of(recipe, space, rows), train=train, evaluate=evaluate, run=run, seeds=seeds, stop=stop)
    # The same in every round, since a lane's last bits depend on the width.
    alike = LanePlan(plan.devices, min(plan.width, -(-len(rows) * seeds // plan.devices)))
    tell = _Waves((on_chunk,) if callable(on_chunk) else tuple(on_chunk))
    parts: list[Swept] = []
    wrong: str | None = None
    with _quiet(optuna), ThreadPoolExecutor(1) as background:
        written: list[Future[None]] = []
        study: Any = None
        asked: list[Any] = []
        for i in range(rounds):
            if study is not None:
                asked = [study.ask() for _ in rows]
                mine = [_suggested(trial, space) for trial in asked]
                rows = from_first(lambda mine=mine: mine)  # type: ignore[misc]
            trials, folder = trials_of(recipe, space, rows), None if checkpoint is None else Path(checkpoint) / _round(i)
            # With room for a whole round in each structure's program, however many of its trials are asked for.
            job = prepared(model, trials, train, evaluate, run, seeds, alike, folder, save_every, stop=stop, room=len(rows))
            check_width(job, plan if isinstance(plan, MeasuredPlan) else alike)
            alike = alike._replace(width=job.waves[0].plan.width)  # a checkpoint's, should another have been measured today
            parts.append(finished(job, tell.next_round()))
            if wrong is None:  # of all rounds so far: in one alone there may be a single loss
                caution(wrong := incomparable(parts[-1].evaluation, _trials(parts)))
            found = _told(optuna, space, rows, parts[-1])
            if study is None:
                direction = "maximize" if parts[0].default_metric() in HIGHER_IS_BETTER else "minimize"
                study = optuna.create_study(direction=direction, sampler=sampler or optuna.samplers.TPESampler(seed=seed), study_name=name)
                study.add_trials(found)
            exhausted = _tell(study, asked, found)
            if store is not None:  # some ten milliseconds a trial, which the next round need not wait for
                written.append(background.submit(_export, optuna, study, study.trials, store, checkpoint))
            if exhausted and i < rounds - 1:
                said = f"{type(study.sampler).__name__} has nothing more to suggest: {(i + 1) * len(rows)} of {count} trials were run"
                warnings.warn(f"search: {said}", Caution, stacklevel=2)
                break
        for export in written:
            export.result()
    return _joined(parts)


class _Waves:
    """The callbacks, told the waves of all rounds as if they were of one sweep."""

    def __init__(self, tellers: tuple[Callable[[Progress], None], ...]):
        self.tellers, self.waves = tellers, 0

    def next_round(self) -> Callable[[Progress], None]:
        first = self.waves

        def tell(progress: Progress) -> None:
            self.waves = max(self.waves, first + progress.wave + 1)
            for teller in self.tellers:
                teller(progress._replace(wave=first + progress.wave))

        return tell


def _optuna() -> Any:
    try:
        import optuna  # half a second to import
    except ImportError:
        raise ImportError("search needs optuna: pip install 'lossopt_jax[optuna]'") from None
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without a log line for each trial, nor warnings that a sampler is new, or draws a number by its fallback or cuts off infinity."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Clip non-finite values|GPSampler cannot handle infinite values")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _suggested(trial: Any, space: Space) -> dict[str, float]:
    """What the sampler suggests for a trial, as `trials_of` takes it."""

    def number(path: str, d: Distribution) -> float:
        if d.kind == "choice":
            return d.code(trial.suggest_categorical(path, d.labels or d.values))
        if d.kind == "int_uniform":
            return float(trial.suggest_int(path, int(d.low), int(d.high)))
        if d.kind == "normal":
            return float(d.quantile(np.array(trial.suggest_float(f"{path}{QUANTILE}", 0.0, 1.0))))
        return d.low if d.kind == "fixed" else float(trial.suggest_float(path, d.low, d.high, log=d.kind == "log_uniform"))

    row: dict[str, float] = {}
    for path, what in space.items():
        if isinstance(what, Distribution):
            row[path] = number(path, what)
            continue
        label = trial.suggest_categorical(path, what.labels())
        row[path] = float(what.labels().index(label))
        own = what.variants[int(row[path])].space
        row |= {f"{label}.{name}": number(f"{label}.{name}", d) for name, d in own.items()}
    return row


def _params(optuna: Any, space: Space, row: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trial's parameters and their distributions as Optuna has them."""
    params: dict[str, Any] = {}
    kinds: dict[str, Any] = {}

    def add(path: str, d: Distribution) -> None:
        if d.kind == "choice":
            value = d.labels[int(row[path])] if d.labels else row[path]
            params[path], kinds[path] = value, optuna.distributions.CategoricalDistribution(d.labels or d.values)
        elif d.kind == "int_uniform":
            params[path], kinds[path] = int(row[path]), optuna.distributions.IntDistribution(int(d.low), int(d.high))
        elif d.kind == "normal":
            params[f"{path}{QUANTILE}"] = d.share_below(row[path])
            kinds[f"{path}{QUANTILE}"] = optuna.distributions.FloatDistribution(0.0, 1.0)
        elif d.kind != "fixed":
            params[path], kinds[path] = row[path], optuna.distributions.FloatDistribution(d.low, d.high, log=d.kind == "log_uniform")

    for path, what in space.items():
        if isinstance(what, Distribution):
            add(path, what)
            continue
        label = what.labels()[int(row[path])]
        params[path], kinds[path] = label, optuna.distributions.CategoricalDistribution(what.labels())
        for name, d in what.variants[int(row[path])].space.items():
            add(f"{label}.{name}", d)
    return params, kinds


def _told(optuna: Any, space: Space, rows: list[dict[str, float]], last: Swept) -> list[Any]:
    """The trials of the last round as Optuna's."""
    metric = last.default_metric()
    # Infinity and not some large number: whatever is found later, in this round or another, must be better.
    worst = -math.inf if metric in HIGHER_IS_BETTER else math.inf
    values = last.lane_metrics()[metric].astype(np.float64).reshape(-1, last.seeds).mean(1)
    state, trials = optuna.trial.TrialState, []
    for row, value, at in zip(rows, values, last.stopped_at.reshape(-1, last.seeds).max(1), strict=True):
        params, kinds = _params(optuna, space, row)
        failed = not math.isfinite(value)
        stopped = at >= 0 and not failed
        trials.append(
            optuna.trial.create_trial(
                state=state.PRUNED if stopped else state.COMPLETE,
                value=float(worst if failed else value),
                params=params,
                distributions=kinds,
                user_attrs={"diverged": True} if failed else {},
                intermediate_values={int(at): float(value)} if stopped else {},
            )
        )
    return trials


def _tell(study: Any, asked: list[Any], found: list[Any]) -> bool:
    """Whether the sampler has nothing more to suggest."""
    exhausted = False
    for trial, its in zip(asked, found, strict=False):  # none was asked for in the first round
        for step, value in its.intermediate_values.items():
            trial.report(value, step)
        for key, value in its.user_attrs.items():
            trial.set_user_attr(key, value)
        try:
            study.tell(trial, its.value if its.state.name == "COMPLETE" else None, state=its.state)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            exhausted = True  # it stops the study, which Optuna allows within `optimize` only; the trial is told all the same
    return exhausted


def _round(i: int) -> str:
    return f"round-{i:04d}"


def _opened(optuna: Any, storage: str, name: str, checkpoint: str | Path | None) -> Any:
    """The storage, which has no trials of that name unless this very search wrote them before it was interrupted."""
    begun = checkpoint is not None and (Path(checkpoint) / _round(0)).exists()
    try:
        store = optuna.storages.get_storage(storage)
        known = name in optuna.get_all_study_names(store)
        trials = len(optuna.load_study(study_name=name, storage=store).get_trials(deepcopy=False)) if known else 0
    except Exception as error:  # of whatever database it is
        raise ValueError(f"search: cannot open the storage {storage!r}: {str(error).splitlines()[0]}") from None
    if trials and not begun:
        study = optuna.load_study(study_name=name, storage=store)
        if checkpoint is None or study.user_attrs.get(FOLDER) != str(Path(checkpoint).resolve()):
            raise _another(name, trials)
        known = optuna.get_all_study_names(store)
        aside = next(f"{name}-{i}" for i in itertools.count(1) if f"{name}-{i}" not in known)
        with _quiet(optuna):
            optuna.copy_study(from_study_name=name, from_storage=store, to_storage=store, to_study_name=aside)
        optuna.delete_study(study_name=name, storage=store)
    return store


def _another(name: str, trials: int) -> ValueError:
    other = "give another name, which of lossopt sweep is the last part of --out"
    return ValueError(f"search: the storage has a study {name!r} already, with {trials} trials of another search: {other}")


def _export(optuna: Any, study: Any, trials: list[Any], store: Any, checkpoint: str | Path | None) -> None:
    """Write the trials that the storage does not have yet."""
    there = optuna.create_study(study_name=study.study_name, storage=store, direction=study.direction, load_if_exists=True)
    known = there.get_trials(deepcopy=False)
    if there.direction != study.direction or any(old.params != new.params for old, new in zip(known, trials, strict=False)):
        raise _another(study.study_name, len(known))
    if checkpoint is not None and FOLDER not in there.user_attrs:
        there.set_user_attr(FOLDER, str(Path(checkpoint).resolve()))
    there.add_trials(trials[len(known) :])


def _trials(parts: list[Swept]) -> Trials:
    recipes = tuple(recipe for part in parts for recipe in part.trials.recipes)
    return Trials(recipes, parts[-1].trials.space, tuple(values for part in parts for values in part.trials.drawn))


def _joined(parts: list[Swept]) -> Swept:
    """The rounds as one sweep."""
    last, before = parts[-1], np.cumsum([0, *[len(part.states) for part in parts]])
    lanes = np.arange(sum(part.lanes for part in parts))
    return Swept(
        trials=_trials(parts),
        seeds=last.seeds,
        history=together([part.history for part in parts], lanes),
        evaluations=together([part.evaluations for part in parts], lanes),
        evaluation_steps=last.evaluation_steps,
        diverged_at=np.concatenate([part.diverged_at for part in parts]),
        stopped_at=np.concatenate([part.stopped_at for part in parts]),
        states=[state for part in parts for state in part.states],
        places=[at and (int(first) + at[0], at[1]) for first, part in zip(before, parts, strict=False) for at in part.places],
        plan=last.plan,
        history_every=last.history_every,
        seconds=sum(part.seconds for part in parts),
        compile_seconds=sum(part.compile_seconds for part in parts),
    )
