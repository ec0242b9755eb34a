"""What trials are ranked by, and where that says nothing."""

import warnings
from collections.abc import Container

from .trials import Trials

# Metrics of which more is better; of any other less is.
HIGHER_IS_BETTER = ("held_out_accuracy",)


class Caution(UserWarning):
    """What a sweep's results cannot say, though it runs."""


def caution(text: str | None) -> None:
    """Warn of it, if there is anything to say."""
    if text:
        warnings.warn(text, Caution, stacklevel=3)


def metric_for(evaluation: Container[str], trials: Trials) -> str:
    """`Swept.default_metric` of a sweep that has these held-out metrics."""
    if (own := trials.recipes[0].metric_name) in evaluation:
        return f"held_out_{own}"
    if "accuracy" in evaluation and (of_the_loss(trials) or trials.losses_differ):
        return "held_out_accuracy"
    return "held_out_loss" if "loss" in evaluation else "train_loss"


def of_the_loss(trials: Trials) -> list[str]:
    """The swept numbers of the loss, by path; where it is chosen among several, of all of them."""
    labels = trials.space["loss"].labels if "loss" in trials.space else ()
    return [path for path in trials.space if path.partition(".")[0] in ("loss", *labels)]


def incomparable(evaluation: Container[str], trials: Trials) -> str | None:
    """`Swept.incomparable` of a sweep that has these held-out metrics."""
    if metric_for(evaluation, trials) not in ("held_out_loss", "train_loss") or not trials.losses_differ:
        return None
    paths = of_the_loss(trials)
    swept = f"{', '.join(paths[:3])} {'are' if len(paths) > 1 else 'is'} swept: " if paths else ""
    return (
        f"{swept}values of different losses cannot be compared, and there is no accuracy to rank by; "
        'give the recipe a metric that all are judged by on held-out data ([metric] name = "mae", metric=lo.bind(lo.losses.mae)), '
        "or leave the loss as it is"
    )
