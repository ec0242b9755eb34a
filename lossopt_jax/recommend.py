"""Which loss, optimizer and schedule for a task: the rules in one table each, with their reasons, sources and the runs behind them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from . import losses, measured, optimizers, schedules
from .data import coded, columns
from .kinds import MANY, check_kind, codes, kind_of, label_facts, listed, looks_classes, loss_numbers, number
from .recipe import Recipe, bind, nearest


class Choice(NamedTuple):
    """A part and why. numbers: what it starts with."""

    name: str
    numbers: Mapping[str, Any]
    reason: str
    source: str


class Kind(NamedTuple):
    """A kind of task. data, family: a task of ours of that kind, None where there is none, and the network it is given to.

    measured: the task whose evidence is cited, by default `data`, which needs nothing but this package.
    """

    loss: Choice
    data: str | None
    family: str
    measured: str | None = None


CROSS_ENTROPY = Choice(
    "cross_entropy",
    {},
    "the likelihood of the class; label_smoothing is worth sweeping",
    "Bishop 2006, section 4.3.4; Szegedy et al. 2016, arXiv:1512.00567",
)
KINDS = {
    "regression": Kind(
        Choice("mse", {}, "the likelihood of Gaussian noise; mae for the median", "Bishop 2006, section 1.2.5"), "diabetes", "mlp"
    ),
    "regression_outliers": Kind(
        Choice(
            "huber",
            {"delta": 1.0},
            "squared near the target, linear far from it, so that outliers do not decide; delta in units of the target",
            "Huber 1964, Annals of Mathematical Statistics 35",
        ),
        "diabetes",
        "mlp",
        "randhie",
    ),
    "counts": Kind(
        Choice("poisson_nll", {}, "the likelihood of counts; the network gives the logarithm of the rate", "McCullagh & Nelder 1989"),
        None,
        "mlp",
    ),
    "binary": Kind(
        Choice(
            "binary_cross_entropy",
            {},
            "the likelihood of yes and no",
            "Bishop 2006, section 4.3.2",
        ),
        "breast_cancer",
        "mlp",
    ),
    "binary_rare": Kind(
        Choice(
            "binary_cross_entropy",
            {"pos_weight": 10.0},
            "a missed positive costs pos_weight false alarms: set it to what it costs you; the outputs are then no probabilities",
            "King & Zeng 2001, Political Analysis 9",
        ),
        "rare_cancer",
        "mlp",
    ),
    "multiclass": Kind(CROSS_ENTROPY, "digits", "mlp"),
    "multiclass_long_tail": Kind(
        Choice(
            "logit_adjusted",
            {"priors": [0.1] * 10},
            "cross-entropy with the classes' shares put into the logits, for an error that counts classes alike; priors are those shares",
            "Menon et al. 2021, arXiv:2007.07314",
        ),
        "digits",
        "mlp",
    ),
    "multilabel": Kind(
        Choice("binary_cross_entropy", {}, "a yes or no for each label by itself", "Bishop 2006, section 4.3.2"), None, "mlp"
    ),
    "ordinal": Kind(
        Choice("ordinal", {}, "is it above each step? classes - 1 outputs", "Cao et al. 2020 (CORAL), arXiv:1901.07884"), None, "mlp"
    ),
    "segmentation": Kind(
        Choice(
            "binary_dice",
            {},
            "the overlap itself, whatever the share of the foreground; binary_iou is its twin, binary_dice_cross_entropy is smoother",
            "Milletari et al. 2016, arXiv:1606.04797",
        ),
        "pasted_digits",
        "unet",
    ),
    "segmentation_classes": Kind(
        Choice("dice_cross_entropy", {}, "overlap by class, and a gradient where there is none yet", "Isensee et al. 2021 (nnU-Net)"),
        None,
        "unet",
    ),
    "tokens": Kind(
        CROSS_ENTROPY._replace(reason="the likelihood of the next token"),
        "help_text",
        "transformer",
    ),
}


# Which `data.csv` trains a kind that no task of ours is of; its file and column are the user's to fill in.
TEMPLATES = {"counts": "counts", "ordinal": "classes"}
TO_FILL = {"name": "csv", "path": "my.csv", "target": "target"}
SPELLINGS = {"multi_class": "multiclass", "multi_label": "multilabel"}
# Words that people have for a kind, which are several of ours or none.
MEANT = {
    "sequence": 'sequences of tokens are "tokens"; what a whole sequence is or has is a class or a number, such as "multiclass", with the '
    'family "rnn"',
    "classification": 'two classes are "binary", more "multiclass", several at once "multilabel"',
    **dict.fromkeys(
        ("mlp", "cnn", "rnn", "transformer", "unet"), "that is a family of networks: give the kind of task, and it as the family"
    ),
}


class Family(NamedTuple):
    """What a kind of network wants. rate: the schedule's number that is the learning rate; low, high: where to sweep it."""

    optimizer: Choice
    schedule: Choice
    rate: str
    low: float
    high: float
    clip_norm: float | None = None


COSINE = "a rate that falls to zero at the end of the run settles what a constant one leaves noisy"
SGDR = "Loshchilov & Hutter 2017, arXiv:1608.03983"
ADAM = "Kingma & Ba 2015, arXiv:1412.6980"
ADAMW = "Loshchilov & Hutter 2019, arXiv:1711.05101"
FAMILIES = {
    "mlp": Family(
        Choice("adamw", {"weight_decay": 1e-2}, "a step of its own for every parameter, and a decay that is not scaled by it", ADAMW),
        Choice(
            "warmup_cosine",
            {"peak": 1e-3, "warmup": 20},
            f"{COSINE}; 1e-3 is the field's start",
            SGDR,
        ),
        "peak",
        1e-4,
        1e-1,
    ),
    "cnn": Family(
        Choice(
            "momentum",
            {"beta": 0.9},
            "SGD with momentum generalises at least as well as Adam on images",
            "Wilson et al. 2017, arXiv:1705.08292",
        ),
        Choice("cosine", {"init": 0.05}, f"{COSINE}; 0.01 to 0.1 is the field's start", SGDR),
        "init",
        1e-3,
        1.0,
    ),
    "rnn": Family(
        Choice(
            "adam",
            {},
            "gradients through time differ in size by orders of magnitude; rmsprop is its older twin",
            ADAM,
        ),
        Choice("cosine", {"init": 1e-3}, f"{COSINE}; 1e-3 is the field's start", SGDR),
        "init",
        1e-4,
        1e-1,
        1.0,
    ),
    "transformer": Family(
        Choice(
            "adamw",
            {"weight_decay": 1e-2},
            "attention's gradients are heavy-tailed: SGD falls behind",
            "Zhang et al. 2020, arXiv:1912.03194",
        ),
        Choice(
            "warmup_cosine",
            {"peak": 1e-3, "warmup": 50},
            "without warm-up the first steps of Adam throw attention off; 1e-4 to 1e-3 is the field's start",
            "Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745",
        ),
        "peak",
        1e-4,
        3e-2,
        1.0,
    ),
    "unet": Family(
        Choice("adam", {}, "reliable without a search", ADAM),
        Choice("cosine", {"init": 1e-3}, f"{COSINE}; 1e-3 is the field's start", SGDR),
        "init",
        1e-4,
        1e-1,
    ),
}

OTHERS = {"mlp": ("cnn", "rnn"), "transformer": ("rnn",)}  # the families whose networks take what the usual one's takes
# Where a family was measured whose network is given to a kind of task that was not.
USUAL_TASK = {
    "mlp": "digits_mlp",
    "cnn": "digits_cnn",
    "rnn": "digits_rnn",
    "transformer": "help_text_transformer",
    "unet": "pasted_digits_unet",
}


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


def recommend_csv(path: str, target: str, kind: str | None = None, family: str | None = None) -> tuple[Recommendation, dict[str, Any]]:
    """The recommendation for a column of a CSV file, and the [data] table of its config."""
    x, y = columns(path, target)
    kind = None if kind is None else kind_named(kind)
    labels = coded(y)[1] if y.dtype.kind == "U" else y
    whole = bool((labels == np.round(labels)).all())
    if len(values := np.unique(labels)) == 1:
        raise ValueError(f"recommend: all values of {target!r} are {y[0]}: there is nothing to learn")
    if y.dtype.kind == "U" and len(values) > max(MANY, len(y) / 5):
        raise ValueError(f"recommend: {target!r} has {len(values)} different texts in {len(y)} lines, too many to be classes")
    amounts = kind in ("regression", "regression_outliers", "counts")
    if y.dtype.kind == "U" and amounts:
        raise ValueError(f"recommend: {kind} needs numbers, and {target!r} has texts such as {str(y[0])!r}: they look like classes")
    if y.dtype.kind == "U" and len(values) > MANY and kind is None:
        kind = "multiclass"
    classes = whole and (not amounts if kind is not None else looks_classes(x, labels))
    names, labels = coded(y) if classes else (values, labels)  # as `data.csv` has them
    found = recommend(kind, inputs=x, targets=labels, family=family)
    shown = [str(name) if y.dtype.kind == "U" else number(name) for name in names]
    if classes and shown != [str(code) for code in range(len(names))]:
        found = replace(found, facts=(*found.facts, f"coded {codes(len(shown))}, here and by the config: {listed(shown)}"))
    sort = "counts" if found.kind == "counts" else "regression" if found.kind.startswith("regression") else "classes"
    return found, {"name": "csv", "path": path, "target": target, "kind": sort}


def completed(config: Mapping[str, Any], task_of: Callable[[Mapping[str, Any]], Any]) -> tuple[dict[str, Any], str]:
    """The tables of a config with the model, loss, optimizer and schedule that it lacks, as recommended for its data; and what was added.

    task_of: gives the task of the [data] table. A config that lacks nothing, or has no data to go by, stays as it is, and "" was added.
    """
    missing = [part for part in ("model", "loss", "optimizer", "schedule") if part not in config]
    data, run, model = (config.get(name, {}) for name in ("data", "run", "model"))
    if not missing or not all(isinstance(table, Mapping) for table in (data, run, model)) or not data:
        return dict(config), ""
    inputs, targets = task_of(data).train
    of = {"inputs": inputs, "targets": targets, "family": model.get("name")}
    found = recommend("counts" if data.get("kind") == "counts" else None, **of)
    if data.get("kind") == "classes" and found.kind in ("counts", "regression", "regression_outliers"):  # by their frequencies
        found = recommend("multiclass", **of)
    steps = run.get("steps", 500)
    parts = {"model": {"name": found.family}} | found.tables(steps if isinstance(steps, int) else 500)
    names = ", ".join(f"{part} {parts[part]['name']}" for part in missing)
    if "optimizer" in missing and "clip_norm" in parts and "clip_norm" not in config:
        missing.append("clip_norm")
    return dict(config) | {part: parts[part] for part in missing}, f"{found.kind}, {found.family}: {names}"
