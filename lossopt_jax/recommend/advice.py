"""What is recommended, in one table for the kinds of task and one for the families of networks: each choice with its reason and source."""

from collections.abc import Mapping
from typing import Any, NamedTuple


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
