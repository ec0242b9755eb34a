"""Which loss, optimizer and schedule for a task, with the runs behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import losses, measured, optimizers, schedules
from ..kinds import check_kind, kind_of, label_facts, loss_numbers
from ..recipe import Recipe, bind, nearest
from .advice import FAMILIES, KINDS, MEANT, OTHERS, SPELLINGS, TEMPLATES, TO_FILL, USUAL_TASK, Choice, Family


@dataclass(frozen=True)
class Recommendation:
    """A recipe to start from, and why. kind, family: what it is for. facts: what was seen in the data. See `recommend`."""

    kind: str
    family: str
    loss: Choice
    facts: tuple[str, ...] = ()

    @property
    def _family(self) -> Family:
        return FAMILIES[self.family]

    @property
    def choices(self) -> dict[str, Choice]:
        """The loss, the optimizer and the schedule."""
        return {"loss": self.loss, "optimizer": self._family.optimizer, "schedule": self._family.schedule}

    @property
    def evidence(self) -> dict[str, list[str]]:
        """Of each part what `lossopt evidence` measured on a task of ours, and of its best rival, a line each; none where nothing was."""
        kind, optimizer = KINDS[self.kind], self._family.optimizer.name
        own, asked = f"{kind.measured or kind.data}_{self.family}", kind.loss
        names = (" ".join([asked.name, *(f"{k}={v:g}" for k, v in asked.numbers.items() if isinstance(v, float))]), asked.name)
        found: dict[str, list[str]] = {
            "loss": [line for task in (own, f"{own}_by_mse") for line in measured.cite(task, "loss", names, optimizer)]
        }
        for part in ("optimizer", "schedule"):
            cited = (measured.cite(task, part, [self.choices[part].name], optimizer) for task in (own, USUAL_TASK[self.family]))
            found[part] = next(filter(None, cited), [])
        return found

    def tables(self, steps: int = 500) -> dict[str, Any]:
        """The tables "loss", "optimizer" and "schedule" of a config, and "clip_norm" where there is one, for a run of so many steps."""
        tables: dict[str, Any] = {part: {"name": c.name, **c.numbers} for part, c in self.choices.items()}
        if "warmup" in tables["schedule"]:  # which cannot be longer than the run
            tables["schedule"]["warmup"] = min(tables["schedule"]["warmup"], steps // 2)
        return ({} if self._family.clip_norm is None else {"clip_norm": self._family.clip_norm}) | tables

    def recipe(self, steps: int = 500) -> Recipe:
        """The recommendation, bound, for a run of so many steps."""
        tables = self.tables(steps)
        tables["schedule"]["total"] = steps
        rooms = {"loss": losses, "optimizer": optimizers, "schedule": schedules}
        parts = {part: bind(getattr(room, tables[part].pop("name")), **tables[part]) for part, room in rooms.items()}
        clip_norm = self._family.clip_norm
        return Recipe(**parts, clip_norm=None if clip_norm is None else np.float32(clip_norm))

    @property
    def space(self) -> dict[str, tuple[float, float]]:
        """Path -> (low, high) of what to sweep first, on a logarithmic scale."""
        ranges = {f"schedule.{self._family.rate}": (self._family.low, self._family.high)}
        return ranges | ({"optimizer.weight_decay": (1e-5, 1e-1)} if "weight_decay" in self._family.optimizer.numbers else {})

    def config(self, data: Mapping[str, Any] | None = None, steps: int = 500) -> str:
        """A whole config as TOML, as `lossopt train`, `sweep` and `tune` take it.

        data: its [data] table; a task of ours of this kind unless given, or where there is none a CSV file whose path and column are to be
        filled in. Raises ValueError where no CSV file holds such data, or no network of ours takes it.
        """
        import tomli_w

        stand_in, usual = KINDS[self.kind].data, KINDS[self.kind].family
        others = OTHERS.get(usual, ()) if data is not None or usual != "mlp" or stand_in == "digits" else ()
        if self.family != usual and self.family not in others:
            raise ValueError(f"no network of ours of the family {self.family!r} does {self.kind} on such data: the recipe is for your own")
        template = data is None and stand_in is None
        if template:
            if self.kind not in TEMPLATES:
                held = "neither a task of ours nor a CSV file holds"
                raise ValueError(f"{held} data of the kind {self.kind}: the recipe is for lo.fit with arrays of your own")
            data = {**TO_FILL, "kind": TEMPLATES[self.kind]}
        ours = "digits_images" if stand_in == "digits" and self.family in ("cnn", "rnn") else stand_in
        table: dict[str, Any] = {"name": f"{self.kind}_{self.family}"}
        parts = self.tables(steps)
        if "clip_norm" in parts:
            table["clip_norm"] = parts.pop("clip_norm")
        table |= {"data": dict(data or {"name": ours}), "model": {"name": self.family}} | parts
        table["run"] = {"steps": steps, "batch_size": 32, "evaluate_every": max(1, steps // 10)}
        space: dict[str, dict[str, Any]] = {}
        for path, (low, high) in self.space.items():
            part, _, name = path.partition(".")
            space.setdefault(part, {})[name] = {"log_uniform": [low, high]}
        table["sweep"] = {"count": 32, "space": space}
        fill = f"# data.path and data.target are to be filled in: a CSV file with a header, and its column to predict ({self.kind})\n"
        return (fill if template else "") + tomli_w.dumps(table)

    def __str__(self) -> str:
        lines, evidence = [f"{self.kind}, {self.family}"] + [f"  {fact}" for fact in self.facts], self.evidence
        for part, c in self.choices.items():
            numbers = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in c.numbers.items())
            lines += [f"{part:9} {c.name}({numbers})", f"  why     {c.reason}", f"  source  {c.source}"]
            lines += ["  runs    " + "\n          ".join(evidence[part] or ["none of ours yet"])]
        if self._family.clip_norm is not None:
            lines += [
                f"clip_norm {self._family.clip_norm:g}",
                "  why     a rare huge gradient does not undo the rest",
                "  source  Pascanu et al. 2013, arXiv:1211.5063",
                "  runs    none of ours yet",
            ]
        lines += [f"sweep     {path} from {low:g} to {high:g}" for path, (low, high) in self.space.items()]
        return "\n".join(lines)


def recommend(kind: str | None = None, *, inputs: Any = None, targets: Any = None, family: str | None = None) -> Recommendation:
    """A loss, an optimizer, a schedule, their starting numbers and what to sweep, each with its reason, source and the runs behind it.

    kind: one of `KINDS` ("multi-class" and the like are other spellings), ValueError where the data cannot be of it; without it the kind is
    read from inputs [n, ...] and targets. Whole numbers of two values are binary (rare where one has under a fifth); of up to 20 classes,
    long-tailed where the largest is ten times the smallest, ordinal where four or more lie in the order of their numbers along one
    direction of the inputs; of more, where they begin at 0 or 1, leave none out and are about as frequent, classes, or regression where
    they lie in such an order, else from 0 or 1 to 1000 at most, counts, as are fewer from 0 on with one peak and a long tail. Other numbers
    are regression, with outliers where more than 0.5 % of the residuals of a linear fit lie beyond four robust deviations (of the targets
    themselves, where the inputs have more columns than half the rows). [n, k] of 0 and 1 is multi-label, [n, h, w] segmentation, int inputs
    and targets [n, t] tokens.
    family: "mlp", "cnn", "rnn", "transformer" or "unet"; by default what the kind and the inputs' axes suggest.

    >>> import lossopt_jax as lo
    >>> found = lo.recommend("regression_outliers")
    >>> found.loss.name, found.choices["optimizer"].name
    ('huber', 'adamw')
    """
    facts: list[str] = []
    numbers: dict[str, Any] = {}
    if isinstance(kind, str):
        kind = kind_named(kind)
    if targets is not None:
        targets = np.asarray(targets)
        targets = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 and kind != "tokens" else targets  # as `fit` has them
    if kind is None:
        if inputs is None or targets is None:
            raise ValueError(f"recommend: give a kind ({', '.join(KINDS)}) or both inputs and targets")
        kind, facts, numbers = kind_of(np.asarray(inputs), np.asarray(targets))
    elif not isinstance(kind, str):
        raise TypeError(f"recommend: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    elif inputs is not None and targets is not None:
        check_kind(kind, np.asarray(inputs), np.asarray(targets))
        facts, numbers = label_facts(kind, np.asarray(targets)), loss_numbers(kind, np.asarray(targets))
    if family is None:
        family, shape = KINDS[kind].family, np.shape(inputs)
        if family == "mlp" and len(shape) == 4:
            family = "cnn"
        if family == "mlp" and len(shape) == 3 and shape[1] != shape[2]:  # squares are rather images without an axis of channels
            family = "rnn"
            facts = [*facts, f"inputs are taken for sequences of {shape[1]} steps of {shape[2]} numbers; if they are not, give the family"]
    if family not in FAMILIES:
        raise ValueError(f"recommend: no family {family!r}; {nearest(family, FAMILIES)}")
    loss = KINDS[kind].loss
    return Recommendation(kind, family, loss._replace(numbers={**loss.numbers, **numbers}), tuple(facts))


def kind_named(kind: str) -> str:
    """The key of `KINDS` that a kind is spelt for; ValueError with the nearest, or with what may be meant."""
    key = kind.strip().lower().replace("-", "_").replace(" ", "_")
    key = SPELLINGS.get(key, key)
    if key not in KINDS:
        raise ValueError(f"recommend: no kind {kind!r}; {MEANT.get(key.removesuffix('s')) or nearest(kind, KINDS)}")
    return key
