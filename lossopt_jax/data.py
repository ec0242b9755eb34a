"""Real tasks as arrays, and the order in which a run sees them: batches as indices, a pure function of (seed, step)."""

import functools
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from ._types import Batch, PyTree, check_fits
from .kinds import RARE


class Task(NamedTuple):
    """A data set split for training and held-out evaluation, (inputs, targets) each, and what a model gives for one example."""

    train: tuple[np.ndarray, np.ndarray]
    evaluate: tuple[np.ndarray, np.ndarray]
    output_shape: tuple[int, ...]


def digits() -> Task:
    """1,797 handwritten digits in 10 classes (scikit-learn's): inputs [n, 64] in 0 ... 1, int labels [n]; a fifth held out."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _split((x / 16).astype(np.float32), y.astype(np.int32), (10,))


def digits_images() -> Task:
    """`digits` as images [n, 8, 8, 1]."""
    (x, y), (x_test, y_test), output_shape = digits()
    return Task((x.reshape(-1, 8, 8, 1), y), (x_test.reshape(-1, 8, 8, 1), y_test), output_shape)


def diabetes() -> Task:
    """442 patients, 10 measurements, disease progression after a year (scikit-learn's): inputs [n, 10] and targets [n], both
    standardised on the training part; a fifth held out."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _standardised_targets(_standardised(_split(x.astype(np.float32), y.astype(np.float32), ())))


def randhie() -> Task:
    """20,190 years of insured people, 9 facts about them and their plan, visits to a doctor in the year (the RAND health insurance
    experiment, in the public domain; statsmodels holds it): inputs [n, 9] and targets [n], both standardised on the training part; a fifth
    held out. Half have one visit at most, one had 77. The years of one person may lie on both sides of the split. Needs the extra `tasks`.
    """
    from importlib.resources import files

    try:
        table = files("statsmodels") / "datasets" / "randhie" / "randhie.csv"  # not as a module, which imports all of statsmodels
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the task randhie needs statsmodels: pip install lossopt_jax[tasks]") from None
    with table.open("rb") as lines:
        rows = np.loadtxt(lines, np.float32, delimiter=",", skiprows=1)
    return _standardised_targets(_standardised(_split(rows[:, 1:], rows[:, 0], ())))


def breast_cancer() -> Task:
    """569 tumours, 30 measurements, malignant 0 or benign 1 (scikit-learn's): inputs [n, 30] standardised on the training part, int
    labels [n]; a fifth held out."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _standardised(_split(x.astype(np.float32), y.astype(np.int32), ()))


def rare_cancer() -> Task:
    """`breast_cancer` with malignant 1, benign 0, and of every ten malignant tumours to train on only one kept: 18 among 299.
    Held out are all of a fifth, as many malignant as there were (two in five)."""
    (x, y), (x_test, y_test), output_shape = breast_cancer()
    malignant = np.flatnonzero(y == 0)
    kept = np.delete(np.arange(len(y)), np.delete(malignant, np.s_[::10]))
    return Task((x[kept], 1 - y[kept]), (x_test, 1 - y_test), output_shape)


def pasted_digits() -> Task:
    """Where is the ink? 1,000 digits drawn in grey over patches of scikit-learn's two photographs: inputs [n, 16, 16, 1] in 0 ... 1, int
    masks [n, 16, 16], 1 where a digit is; a fifth held out, of digits that are not drawn for training."""
    from sklearn.datasets import load_digits, load_sample_images

    photographs = [image.mean(-1).astype(np.float32) / 255 for image in load_sample_images().images]
    shapes = (load_digits().images / 16).astype(np.float32)[:1000]
    rng, count, side = np.random.default_rng(0), len(shapes), 16
    images, masks = np.zeros((count, side, side, 1), np.float32), np.zeros((count, side, side), np.int32)
    for image, mask, digit in zip(images[..., 0], masks, shapes, strict=True):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(length - side) for length in photograph.shape)
        image[:] = photograph[top : top + side, left : left + side]
        top, left = rng.integers(side - 7, size=2)
        under = image[top : top + 8, left : left + 8]
        under[:] = under * (1 - digit) + digit * rng.uniform(0.3, 1)
        mask[top : top + 8, left : left + 8] = digit > 0.5
    return _split(images, masks, (side, side))


def help_text() -> Task:
    """Python's own help topics, character by character: inputs [n, 32] and targets [n, 32] one character on, int codes of the alphabet.

    12,000 windows of the first four fifths of the text, 500 of the rest. Text and alphabet are those of the Python that runs: 465
    thousand characters, 103 of them different, on 3.11.
    """
    codes, alphabet = help_codes()
    rng, window, cut = np.random.default_rng(0), 32, len(codes) * 4 // 5
    places = rng.integers(0, cut - window, 12_000), rng.integers(cut, len(codes) - window, 500)
    (x, y), (x_test, y_test) = (
        (codes[at[:, None] + np.arange(window)[None]], codes[at[:, None] + np.arange(1, window + 1)[None]]) for at in places
    )
    return Task((x, y), (x_test, y_test), (window, len(alphabet)))


def csv(path: str, target: str, kind: str = "regression") -> Task:
    """A table of numbers with a header line: inputs [n, columns] standardised on the training part; a fifth held out.

    target: the column to predict. kind: "regression" (float targets, standardised on the training part), "counts" (float targets as they
    are) or "classes" (any values, each a class, see `coded`). Errors name the column and the line.
    """
    x, y = columns(path, target)
    if kind not in ("regression", "counts", "classes"):
        raise ValueError(f"csv: kind must be regression, counts or classes, got {kind!r}")
    if kind == "classes":
        values, codes = coded(y)
        return _standardised(_split(x, codes, () if len(values) == 2 else (len(values),)))
    if y.dtype.kind != "f":
        raise ValueError(f"csv: column {target!r} of {path} must be numbers for {kind}")
    task = _standardised(_split(x, y, ()))
    return _standardised_targets(task) if kind == "regression" else _as_float32(task)


def coded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes in the order of their codes, and the int code of each of the values [n].

    They are in sorted order, numbers by size; of two texts one that is rare (`kinds.RARE`) is 1, since whatever weighs positives means
    the rare ones.
    """
    names, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if values.dtype.kind == "U" and len(names) == 2 and counts[0] < RARE * len(values):
        names, codes = names[::-1], 1 - codes
    return names, codes.astype(np.int32)


def columns(path: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """The input columns of a CSV file, [n, columns], and the target's values, [n]: floats where all are numbers, else text."""
    import csv as reader

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = reader.reader(file)
            (_, header), *rows = [(lines.line_num, row) for row in lines if row] or [(1, [])]
    except OSError as error:
        named = type(error)(f"csv: cannot read {path}: {error.strerror}")
        named.strerror = error.strerror  # which a config's error asks for
        raise named from None
    except (UnicodeDecodeError, reader.Error) as error:
        raise ValueError(f"csv: {path} is no table of text in UTF-8 ({error}): save it as that") from None
    if len({*header}) < len(header):
        raise ValueError(f"csv: {path} names a column twice: {', '.join(header)}")
    if target not in header:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        hint = "" if other is None else f": separated by {other!r}, where commas are expected"
        raise ValueError(f"csv: {path} has no column {target!r}; it has {', '.join(header) or 'no header line'}{hint}")
    if len(rows) < 5:
        raise ValueError(f"csv: {path} has {len(rows)} rows, and a fifth is to be held out: at least 5 are needed")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"csv: line {line} of {path} has {len(row)} values where the header has {len(header)}")
        for name, value in zip(header, row, strict=True):
            if not value.strip():
                raise ValueError(f"csv: line {line} of {path}: {name!r} is empty; {MISSING if name != target else 'leave the line out'}")
            if name != target and not _is_number(value):
                raise ValueError(f"csv: line {line} of {path}: {name!r} is {value!r}, which is no finite number; {_way_on(value)}")
    if len(header) < 2:
        raise ValueError(f"csv: {path} has no column beside {target!r} to predict it from")
    at = header.index(target)
    x = np.array([[float(value) for i, value in enumerate(row) if i != at] for _, row in rows])
    values = [row[at].strip() for _, row in rows]
    numbers = [_is_number(value) for value in values]
    if sum(numbers) * 2 > len(rows) and not all(numbers):  # numbers, of which some are not there
        line, wrong = rows[numbers.index(False)][0], values[numbers.index(False)]
        raise ValueError(f"csv: line {line} of {path}: {target!r} is {wrong!r}, which is no finite number; leave the line out")
    return x, np.array([float(v) for v in values]) if all(numbers) else np.array(values)


MISSING = "fill it, as with the mean of its column, or leave the line out"


def _is_number(value: str) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _way_on(value: str) -> str:
    """What to do about a value of an input column that is no number."""
    from datetime import datetime

    word = value.strip().lower()
    if word in ("nan", "na", "n/a", "null", "none", "inf", "-inf", "?", "-"):
        return MISSING
    if word in ("true", "false", "yes", "no"):
        return "write 1 and 0 instead"
    with suppress(ValueError):
        datetime.fromisoformat(value.strip())
        return "write a date as a number, such as days since the first"
    return "give each of its texts a column of 0 and 1 (pandas.get_dummies does that), or leave the column out"


def help_codes() -> tuple[np.ndarray, str]:
    """Python's help topics in alphabetical order as int codes [characters], and the alphabet that they index."""
    from pydoc_data.topics import topics

    letters = "".join(topics[name] for name in sorted(topics))
    alphabet = "".join(sorted(set(letters)))
    return np.searchsorted(list(alphabet), list(letters)).astype(np.int32), alphabet


TASKS = ("breast_cancer", "diabetes", "digits", "digits_images", "help_text", "pasted_digits", "randhie", "rare_cancer")


def _split(x: np.ndarray, y: np.ndarray, output_shape: tuple[int, ...]) -> Task:
    order = np.random.default_rng(0).permutation(len(x))
    held_out, kept = order[: len(x) // 5], order[len(x) // 5 :]
    return Task((x[kept], y[kept]), (x[held_out], y[held_out]), output_shape)


def _standardised(task: Task) -> Task:
    (x, y), (x_test, y_test), output_shape = task
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 4 * np.finfo(std.dtype).eps * np.abs(mean), std, 1)  # rounding gives a constant column of 0.1 a deviation
    inputs, held_out = ((x - mean) / std).astype(np.float32), ((x_test - mean) / std).astype(np.float32)
    return Task((inputs, y), (held_out, y_test), output_shape)


def _standardised_targets(task: Task) -> Task:
    (x, y), (x_test, y_test), output_shape = task
    mean, std = y.mean(), y.std() or 1
    return _as_float32(Task((x, (y - mean) / std), (x_test, (y_test - mean) / std), output_shape))


def _as_float32(task: Task) -> Task:
    """Targets of a table, which float32 need not hold before they are standardised (5e9 and 1, or 1e30)."""
    (x, y), (x_test, y_test), output_shape = task
    return Task((x, y.astype(np.float32)), (x_test, y_test.astype(np.float32)), output_shape)


def as_batch(data: Any, name: str) -> Batch:
    """(inputs, targets) or (inputs, targets, weights) as a Batch of arrays with the same, non-zero number of examples."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise TypeError(f"{name} must be (inputs, targets) or (inputs, targets, weights), got {_described(data)}")
    batch = Batch(*jax.tree.map(np.asarray, tuple(data)))
    if any(
        isinstance(part, list) and all(leaf.ndim == 0 for leaf in jax.tree.leaves(done)) for part, done in zip(data, batch, strict=False)
    ):
        raise TypeError(f"{name}: inputs and targets must be arrays, got lists of numbers: numpy.asarray makes arrays of them")
    for leaf in jax.tree.leaves(batch):
        if leaf.dtype.kind in "USOMm":
            raise TypeError(f"{name}: arrays must be numbers, got one of {leaf.dtype}")
        check_fits(leaf, what=name)
    lengths = {len(leaf) if leaf.ndim else None for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or lengths <= {0, None}:
        shapes = jax.tree.map(lambda leaf: leaf.shape, batch)
        raise ValueError(
            f"{name}: every array needs the same number (at least 1) of examples on its first axis, got shapes {tuple(shapes)}"
        )
    return batch


def _described(data: Any) -> str:
    return f"{type(data).__name__} of {len(data)}" if isinstance(data, tuple | list) else type(data).__name__


def examples(batch: Batch) -> int:
    """How many examples a batch, or a whole data set, holds."""
    return len(jax.tree.leaves(batch)[0])


def take(batch: Batch, indices: jax.Array) -> Batch:
    """The examples at `indices` [b]."""
    return jax.tree.map(lambda leaf: leaf[indices], batch)


def batch_indices(n: int, batch_size: int, seed: int, first: int, count: int) -> np.ndarray:
    """Indices [count, batch_size] of the batches of steps first ... first + count - 1.

    The examples are one endless stream: each epoch a fresh permutation of all n, seeded by (seed, epoch), cut into batches without a
    gap. So every example is seen once an epoch, no batch is short, and the batch of a step depends on nothing but (seed, step).

    >>> batch_indices(4, 2, seed=0, first=1, count=1).tolist() == batch_indices(4, 2, seed=0, first=0, count=2)[1:].tolist()
    True
    """
    positions = np.arange(first * batch_size, (first + count) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, n)
    out = np.empty(len(positions), np.int32)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(epochs) else ():
        here = epochs == epoch
        out[here] = _permutation(n, seed, epoch)[offsets[here]]
    return out.reshape(count, batch_size)


@functools.lru_cache(maxsize=64)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n).astype(np.int32)


def pieces(data: PyTree, size: int) -> Batch:
    """A data set as equal pieces [k, size, ...], the last one filled up with examples of weight 0; one piece when it is small."""
    batch = Batch(*data)
    n = examples(batch)
    if n <= size:
        return jax.tree.map(lambda leaf: leaf[None], batch)
    short = -n % size
    if short and batch.weights is None:
        batch = batch._replace(weights=np.ones(n, np.float32))
    padded = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], short, 0)]), batch)
    if short:
        padded.weights[n:] = 0
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), padded)
