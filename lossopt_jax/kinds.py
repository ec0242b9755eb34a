"""What kind of task some data is: read from its values, with what was seen in them."""

from typing import Any

import numpy as np

RARE = 0.2  # a class of less than this share is rare
LONG_TAIL = 10.0  # the largest class is so many times the smallest
FAR, HEAVY = 4.0, 0.005  # residuals beyond so many robust deviations, and which share of them is a heavy tail: Gauss has 0.006 %
MANY = 20  # whole numbers of more values than this are no classes, unless these are about as frequent and in no order
UNEVEN = 0.5  # deviation of their frequencies over the mean: four examples of each by chance; a bell has 0.8, a long tail more
ORDERED = 0.8  # of what tells classes apart lies along one direction, in the order of their numbers: they are grades
IN_ORDER = 0.9  # rank correlation of many classes' places and numbers: of 21 without an order four deviations
CLASSES = 'if they are classes, give the kind "multiclass"'
LARGEST_COUNT = 1000  # nor counts beyond this, or where none is 0 or 1


def kind_of(x: np.ndarray, y: np.ndarray) -> tuple[str, list[str], dict[str, Any]]:
    """The kind, what was seen, and the numbers of the loss that the data gives."""
    _check(x, y)
    whole = bool((y == np.round(y)).all())
    values, counts = np.unique(y, return_counts=True)
    if len(values) == 1:
        raise ValueError(f"recommend: all targets are {values[0]}: there is nothing to learn")
    if y.ndim >= 3 and whole:
        if x.shape[: y.ndim] != y.shape:
            raise ValueError(f"recommend: masks of shape {y.shape} need images of that size, got inputs {x.shape}")
        if len(values) == 2:
            seen = [f"{len(values)} classes, {np.mean(y == values[1]):.1%} of the pixels {number(values[1])}"]
            return "segmentation", [*seen, *label_facts("segmentation", y)], {}
        seen = [f"{len(values)} classes, {np.mean(y != 0):.1%} of the pixels not 0"]
        return "segmentation_classes", [*seen, *label_facts("segmentation_classes", y)], {}
    if y.ndim == 2 and whole:
        if set(values) <= {0, 1}:
            if (y.sum(1) == 1).all():
                return "multiclass", [f"{y.shape[1]} classes, one of them 1 in each row"], {}
            return "multilabel", [f"{y.shape[1]} labels, {y.sum(1).mean():.2g} of them true in a row"], {}
        if x.shape == y.shape and x.dtype.kind in "iu":
            return "tokens", [f"{len(values)} tokens, {y.shape[1]} in a row"], {}
        if x.ndim == 2 and x.dtype.kind in "iu" and abs(x.shape[1] - y.shape[1]) == 1:
            raise ValueError(f"recommend: tokens need targets of the inputs' shape {x.shape}, each the one that follows, got {y.shape}")
    if y.ndim == 1 and whole and len(values) == 2:
        kind = "binary_rare" if counts.min() / len(y) < RARE else "binary"
        return kind, label_facts(kind, y), loss_numbers(kind, y)
    if y.ndim == 1 and whole and looks_classes(x, y):
        ratio = counts.max() / counts.min()
        if len(values) <= MANY and (share := _along_order(x.reshape(len(x), -1), np.searchsorted(values, y))) > ORDERED:
            ordered = f"{len(values)} classes that lie in the order of their numbers along one direction of the inputs"
            seen = [f'{ordered} ({share:.0%} of what tells them apart); without an order they are "multiclass" instead']
            return "ordinal", [*seen, *label_facts("ordinal", y)], {}
        others = 'numbers of events are "counts" instead, ' + ('grades "ordinal"' if len(values) <= MANY else 'amounts "regression"')
        seen = [f"{len(values)} classes, the largest {ratio:.3g} times the smallest; {others}"]
        kind = "multiclass_long_tail" if ratio >= LONG_TAIL else "multiclass"
        return kind, [*seen, *label_facts(kind, y)], loss_numbers(kind, y)
    even = y.ndim == 1 and whole and len(values) > MANY and looks_even(y)
    if y.ndim == 1 and whole and 0 <= values[0] <= 1 and values[-1] <= LARGEST_COUNT and not even:
        seen = [f"whole numbers from {values[0]:g} to {values[-1]:g}, mean {y.mean():.3g}, variance {y.var():.3g}; {CLASSES}"]
        return "counts", seen, {}
    far, of_what = _far(x.reshape(len(x), -1), y.reshape(len(y), -1))
    seen = [f"{far:.2%} of {of_what} lie beyond {FAR:g} robust deviations (Gauss has 0.006 %)"]
    if even:
        seen.append(f"{len(values)} whole numbers that lie in their order along one direction of the inputs: amounts; {CLASSES}")
    elif y.ndim == 1 and whole and len(values) <= len(y) / 5:
        seen.append(f"{len(values)} different whole numbers; {CLASSES}")
    return ("regression_outliers" if far > HEAVY else "regression"), seen, {}


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if not x.ndim or not y.ndim:
        raise ValueError(f"recommend: inputs and targets need an axis of examples, got shapes {x.shape} and {y.shape}")
    if not len(y) or len(x) != len(y):
        raise ValueError(f"recommend: inputs and targets need the same number (at least 1) of examples, got {len(x)} and {len(y)}")
    for name, values in (("inputs", x), ("targets", y)):
        if values.dtype.kind not in "iufb":
            raise ValueError(f"recommend: {name} must be numbers, got {values.dtype}")
        if not np.isfinite(values).all():
            raise ValueError(f"recommend: {name} has {int((~np.isfinite(values)).sum())} values that are not finite")


def loss_numbers(kind: str, y: np.ndarray) -> dict[str, Any]:
    """The numbers of the kind's loss that come from the targets."""
    counts = np.unique(y.argmax(1) if y.ndim == 2 else y, return_counts=True)[1]
    if kind == "binary_rare":  # of 0 to 1, whichever of them is the rare one: then either weighs as much as the other
        return {"pos_weight": float(f"{counts[0] / counts[1]:.4g}")}
    if kind == "multiclass_long_tail":
        return {"priors": [round(float(share), 6) for share in counts / len(y)]}
    return {}


def check_kind(kind: str, x: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError where data cannot be of the kind it is said to be of, naming what it looks like."""
    _check(x, y)
    values, whole = np.unique(y), bool((y == np.round(y)).all())
    labels, flags = whole and y.ndim == 1, whole and set(values) <= {0, 1}
    classes = "whole numbers [n] of three values or more, several examples of most"
    several = labels and 2 < len(values) <= max(MANY, len(y) / 5)
    images = "whole numbers [n, h, w]" + (", 0 and 1" if kind == "segmentation" else "")
    fits, needs = {
        "regression": (y.ndim <= 2, "numbers [n]"),
        "counts": (labels and values[0] >= 0, "whole numbers [n] from 0 on"),
        "binary": (labels and len(values) == 2, "whole numbers [n] of two values"),
        "multiclass": (several or (flags and y.ndim == 2 and bool((y.sum(1) == 1).all())), classes),
        "ordinal": (several, classes),
        "multilabel": (flags and y.ndim == 2, "0 and 1 [n, labels]"),
        "segmentation": (y.ndim >= 3 and x.shape[: y.ndim] == y.shape and (whole if kind == "segmentation_classes" else flags), images),
        "tokens": (whole and y.ndim == 2 and x.shape == y.shape and x.dtype.kind in "iu", "whole numbers [n, t], as the inputs"),
    }[kind.partition("_")[0]]
    if not fits:
        seen = f"{list(y.shape)} with {len(values)} different values from {values[0]:g} to {values[-1]:g}"
        looks, facts, _ = kind_of(x, y)
        raise ValueError(
            f"recommend: {kind} needs targets that are {needs}, got {seen}: {facts[-1] if looks == kind else f'they look like {looks}'}"
        )


def label_facts(kind: str, y: np.ndarray) -> list[str]:
    """What is to be known of labels of a kind: how rare the rarer of two is, and what is to be done with those that are not 0, 1, ..."""
    if kind.partition("_")[0] not in ("binary", "multiclass", "ordinal", "segmentation") or (y.ndim == 2 and kind.startswith("multiclass")):
        return []
    values, counts = np.unique(y, return_counts=True)
    seen, names = [], [number(value) for value in values]
    if kind.startswith("binary"):
        seen.append(f"{counts.min()} of {len(y)} are {names[counts.argmin()]} ({counts.min() / len(y):.1%})")
    if not np.array_equal(values, np.arange(len(values))):
        two = len(values) == 2
        how = f"targets == {names[1]}" if two else "numpy.searchsorted(numpy.unique(targets), targets)"
        are = " and ".join(names) if two else listed(names)
        seen.append(f"the labels are {are}, and the loss wants {codes(len(values))}: {how} has them so")
    if kind == "binary_rare" and counts[0] < counts[1]:
        rare = "rare" if counts[0] < RARE * len(y) else "rarer"
        seen.append(f"the {rare} class is {names[0]}, so pos_weight is below 1 and weighs the common one down; or swap the labels")
    return seen


def number(value: float) -> str:
    """A number in full where it is whole and float64 has all its digits."""
    return str(int(value)) if abs(value) < 2**53 and value == int(value) else f"{value:g}"


def listed(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 5 else [*names[:3], "...", names[-1]])


def codes(count: int) -> str:
    """The labels that a loss wants of so many classes, in words."""
    return "0 and 1" if count == 2 else f"0 to {count - 1}"


def looks_classes(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether whole numbers [n] are classes: few values that do not look counted, or more that are about as frequent and have no order.

    Amounts, as a percentile, are as frequent as each other too, but lie in their order along one direction of the inputs.
    """
    values = np.unique(y)
    if len(values) <= MANY:
        return not looks_counted(y)
    return looks_even(y) and not _along_order(x.reshape(len(x), -1), np.searchsorted(values, y)) > ORDERED


def looks_even(y: np.ndarray) -> bool:
    """Whether whole numbers [n] go from 0 or 1 on without a gap, and are about as frequent.

    Numbers of events thin out towards their largest, and a gap there is soon empty.
    """
    values, counts = np.unique(y, return_counts=True)
    without_gap = values[0] in (0, 1) and values[-1] - values[0] == len(values) - 1
    return bool(without_gap and counts.mean() > 1 / UNEVEN**2 and counts.std() < UNEVEN * counts.mean())


def looks_counted(y: np.ndarray) -> bool:
    """Whether whole numbers from 0 on have one peak and a long tail, as numbers of events have and classes by chance have not."""
    values, counts = np.unique(y, return_counts=True)
    if values[0] != 0 or len(values) < 6 or counts.max() < LONG_TAIL * counts.min() or (values == np.arange(len(values))).mean() < 0.5:
        return False
    peak, steps = counts.argmax(), np.diff(counts)
    noise = 2 * np.sqrt(counts[1:] + counts[:-1])
    return bool((steps[:peak] > -noise[:peak]).all() and (steps[peak:] < noise[peak:]).all())


def _along_order(x: np.ndarray, labels: np.ndarray) -> float:
    """The share of what linearly tells four or more classes apart that lies along one direction, 0 where they are not in order on it.

    By canonical correlations r of inputs and classes: r^2 / (1 - r^2), less what chance gives. Of more than `MANY` classes neighbours may
    have changed places by chance: their places and their numbers then correlate by `IN_ORDER` at least.
    """
    n, classes = len(x), labels.max() + 1
    if classes < 4 or x.dtype.kind not in "iufb" or n <= 2 * x.shape[1]:
        return 0.0
    centred = x.astype(np.float64) - x.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    left = left[:, size > 1e-9 * size.max(initial=1e-300)]
    shares = np.bincount(labels) / n
    means = np.stack([left[labels == c].sum(0) for c in range(classes)]) / np.sqrt(shares * n)[:, None]
    _, r, directions = np.linalg.svd(means, full_matrices=False)
    chance = max(left.shape[1], classes - 1 if classes > MANY else 0) / n  # the mean r^2 of two spaces by chance is the larger's share of n
    square = np.clip((np.square(r[: classes - 1]) - chance) / (1 - chance), 0, 1 - 1e-9)
    apart = square / (1 - square)
    places = (means / np.sqrt(shares * n)[:, None]) @ directions[0]
    rises = np.diff(places)
    in_order = (rises > 0).all() or (rises < 0).all()
    if classes > MANY:
        in_order = abs(np.corrcoef(places.argsort().argsort(), np.arange(classes))[0, 1]) > IN_ORDER
    return float(apart[0] / apart.sum()) if in_order and apart.sum() > 0 else 0.0


def _far(x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """The share of residuals of a linear fit that are far out, in deviations by the median, and what they are residuals of.

    With inputs of more columns than half the rows a fit bends to every outlier: then what the targets differ from their median by.
    """
    y = y.astype(np.float64)
    scale = y.std(0)
    if len(x) > 2 * (x.shape[1] + 1):
        design = np.concatenate([np.ones((len(x), 1)), x], 1).astype(np.float64)
        residuals, of_what = y - design @ np.linalg.lstsq(design, y, rcond=None)[0], "the residuals of a linear fit"
    else:
        residuals, of_what = y - np.median(y, 0), f"the targets (a linear fit of {x.shape[1]} columns to {len(x)} rows tells nothing)"
    deviations = 1.4826 * np.median(np.abs(residuals - np.median(residuals, 0)), 0)
    return float((np.abs(residuals) > FAR * np.maximum(deviations, 1e-5 * scale)).mean()), of_what
