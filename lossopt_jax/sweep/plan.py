"""The plan of lanes on devices: what fits into memory, and the width that this machine runs fastest, measured once and remembered."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Batch
from ..checkpoint import write_whole
from ..data import as_batch, batch_indices, examples, pieces
from ..hosts import from_first
from ..loop import Run, chunk_length
from ..models import Model
from ..recipe import Recipe
from ..step import init_state
from ..train import EVALUATION_BATCH
from .lanes import LanePlan, by_structure, default_plan, free_bytes, lanes_at_once
from .population import Rule
from .program import Lane, compiled_for, lanes_program
from .rungs import Stop
from .trials import Trials

MOST_SECONDS, MOST_SHARE = 5.0, 0.05  # of measuring, and of the run that it is for
MARGIN = 0.95  # another width has to take less than this share of the usual one's time
ROOM = 0.8  # of the free memory
EMPTY = 0.8  # half the width has to need less than this share of the places, for what it loses in speed


class MeasuredPlan(LanePlan):
    """A `LanePlan` that says why. note: the reason. seconds: what compiling and measuring took."""

    note: str
    seconds: float

    def __new__(cls, plan: LanePlan, note: str, seconds: float) -> "MeasuredPlan":
        self = super().__new__(cls, *plan)
        self.note, self.seconds = note, seconds
        return self

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.note}"


def plan_lanes(
    model: Model | Callable[..., Model],
    trials: Trials | Sequence[Recipe],
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    seeds: int = 1,
    stop: Rule | None = None,
    seconds: float | None = None,
) -> LanePlan:
    """How lanes lie on devices, as `sweep` chooses it where it is given no plan; `str` of it says why.

    The backend's usual plan (see `default_plan`) is compiled, narrowed until XLA's count of its memory fits into what is free, and timed
    over a few steps; then other widths while there is time, nearest first. `sweep` runs what was compiled here. What was
    measured is remembered in the user's cache folder by structure, shapes and device. Of several structures the most frequent decides.

    stop: as in `sweep`; where few lanes live to the end a wide group would run with empty places, so it is narrower.
    seconds: most to spend on other widths; by default 5, or 5 % of the estimated run if that is less: a short run takes the usual plan.
    """
    trials = trials if isinstance(trials, Trials) else Trials(tuple(trials), {})
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    return planned(model, trials, data, held_out, run, seeds, stop, seconds)


def planned(
    model: Model | Callable[..., Model],
    trials: Trials,
    data: Batch,
    held_out: Batch | None,
    run: Run,
    seeds: int,
    stop: Rule | None = None,
    seconds: float | None = None,
) -> MeasuredPlan:
    """`plan_lanes` of data that is ready."""
    began = _process_0s_clock()
    members = max(by_structure(trials), key=len)
    recipes = [trials.recipes[i] for i in members]
    model, run = trials.setup(members[0], model, run)
    group = Group(model, recipes, data, held_out, run, seeds, stop)
    known = from_first(lambda: _remembered(group))
    if known is not None and seconds is None:
        return MeasuredPlan(known[0], known[1], _process_0s_clock() - began)
    usual = default_plan(model, data.inputs, run.batch_size, len(recipes) * seeds)
    while usual.width > 1 and group.places(usual._replace(width=usual.width // 2)) < EMPTY * group.places(usual):
        usual = usual._replace(width=usual.width // 2)
    while (first := group.rate(usual)) is None and usual.width > 1:
        usual = usual._replace(width=usual.width // 2)
    if first is None:
        return MeasuredPlan(usual, "too large for the free memory by XLA's count", _process_0s_clock() - began)
    compiling, rates = _process_0s_clock() - began, {usual: first}
    if seconds is None:
        seconds = min(MOST_SECONDS, MOST_SHARE * first.seconds * group.places(usual) * len(trials) / len(recipes))
    until = _process_0s_clock() + seconds
    for plan in _others(usual, len(recipes) * seeds):
        if _process_0s_clock() + compiling > until:
            break
        if (rate := group.rate(plan)) is not None:
            rates[plan] = rate
    times = {plan: rate.seconds * group.places(plan) for plan, rate in rates.items()}
    best = min(times, key=lambda plan: times[plan])
    best = best if times[best] < MARGIN * times[usual] else usual
    note = _note(best, rates)
    if len(rates) > 1:
        from_first(lambda: _remember(group, best, note))
    return MeasuredPlan(best, note, _process_0s_clock() - began)


def _process_0s_clock() -> float:
    """Since what is measured decides, and all processes have to decide alike."""
    return from_first(time.perf_counter)


class Rate(NamedTuple):
    """Of a plan: seconds a lane-step, and the bytes that a lane takes."""

    seconds: float
    lane_bytes: float


class Group(NamedTuple):
    """Recipes of one structure and what they run on."""

    model: Model
    recipes: Sequence[Recipe]
    data: Batch
    held_out: Batch | None
    run: Run
    seeds: int
    stop: Rule | None = None

    def places(self, plan: LanePlan) -> int:
        """The steps of all places on the devices, those of empty ones too, until the last lane has ended."""
        turn, steps, trials = plan.devices * plan.width, self.run.steps, len(self.recipes)
        rungs, living = (self.stop.steps(steps), self.stop.living(trials)) if isinstance(self.stop, Stop) else ((), [trials])
        return int(np.dot([-(-some * self.seeds // turn) * turn for some in living], np.diff((0, *rungs, steps))))

    def lanes(self, plan: LanePlan) -> list[Lane]:
        """Those of the first wave: the program is compiled for so many."""
        most = lanes_at_once(self.model, self.recipes[0], len(self.recipes), self.seeds, self.data, plan)
        return [(recipe, seed) for recipe in self.recipes[: most // self.seeds] for seed in range(self.seeds)]

    def rate(self, plan: LanePlan) -> Rate | None:
        """Of one turn on each device, the best of three over 20 ms or more; None where the program does not fit into the memory."""
        lanes = self.lanes(plan)
        compiled = compiled_for(self.model, lanes, self.data, self.held_out, self.run, plan, len(lanes)).result()
        if compiled.bytes > ROOM * free_bytes():
            return None
        program = lanes_program(self.model, lanes, self.data, self.held_out, self.run, plan)
        now = program.begin()
        now = now._replace(turns=np.minimum(now.turns, 1))
        length = chunk_length(self.run)
        order = batch_indices(examples(self.data), self.run.batch_size, self.run.seed, 0, length)
        indices, count = np.stack([order] * self.seeds), min(4, length)
        times: list[float] = []
        while len(times) < 3:
            began = time.perf_counter()
            now, _ = program.chunk(now, indices, count)  # its metrics are NumPy arrays: it is done
            took = time.perf_counter() - began
            times.append(from_first(lambda took=took: took))  # type: ignore[misc]
            if times[-1] < 0.02 and count < length:
                count, times = min(4 * count, length), []
        return Rate(min(times) / (count * now.turns.sum() * plan.width), compiled.bytes / compiled.per_device)


def _others(usual: LanePlan, lanes: int) -> list[LanePlan]:
    """Other widths, nearest first, and after the nearest one lane at a time on one device, which all is compared with."""
    most = -(-lanes // usual.devices)
    widths = [int(usual.width * factor) for factor in (2.0, 0.5, 4.0, 0.25)]
    plans = [usual._replace(width=width) for width in widths if 1 <= width <= most]
    return [plan for plan in dict.fromkeys([*plans[:1], LanePlan(1, 1), *plans[1:]]) if plan != usual]


def _note(best: LanePlan, rates: dict[LanePlan, Rate]) -> str:
    rate, alone = rates[best], rates.get(LanePlan(1, 1))
    size = f"{rate.lane_bytes / 1e6:.2g} MB a lane"
    if len(rates) == 1:
        return f"the usual plan; {size}"
    seconds = ", ".join(f"{rates[plan].seconds * 1e6:.0f} at {plan.devices} x {plan.width}" for plan in sorted(rates))
    gain = "" if alone is None else f"{alone.seconds / rate.seconds:.1f} times one at a time; "
    return f"{gain}{size} (us a lane-step: {seconds})"


def _file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("lossopt_jax", appauthor=False)) / "plans.json"


def _key(group: Group) -> str:
    """The structure, the shapes and the device."""
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), group.data.inputs)
    state = jax.eval_shape(lambda x: init_state(group.model, group.recipes[0], jax.random.key(0), x), inputs)
    shapes = jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), group.data)
    device, precision = jax.devices()[0], jnp.zeros(()).dtype
    parts = (jax.tree.structure(group.recipes[0]), state, shapes, group.run.batch_size, len(jax.devices()), device.device_kind, precision)
    lanes = len(group.recipes) * group.seeds
    usual = default_plan(group.model, group.data.inputs, group.run.batch_size, lanes)
    many = min(lanes, 4 * usual.devices * usual.width)  # from there on it does not matter
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", f"{jax.__version__} {many} {group.stop} {parts}").encode()).hexdigest()


def _remembered(group: Group) -> tuple[LanePlan, str] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # a file that cannot be read is not known
        plan, note = json.loads(_file().read_text())[_key(group)]
        return LanePlan(*map(int, plan)), str(note)
    return None


def _remember(group: Group, plan: LanePlan, note: str) -> None:
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads(_file().read_text()))
    known[_key(group)] = (plan, note)
    text = json.dumps(dict(list(known.items())[-1000:]))
    with suppress(OSError):  # without a cache folder it is measured again
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), lambda file: file.write(text.encode()))
