"""Optimizers: learning_rate -> optax.GradientTransformation, every number traced, in float32 whatever the parameters' dtype.

`__all__` is the catalogue. Beside it: `decay_matrices_only`, a mask for what decays, `schedule_free_eval_params`, and `elementwise`, which
says of an optimizer of one's own that it treats each number by itself, so that small networks train faster.
"""

from ._common import elementwise as elementwise
from .adam import adam as adam
from .adam import adamax as adamax
from .adam import adamw as adamw
from .adam import amsgrad as amsgrad
from .adam import nadam as nadam
from .adam import nadamw as nadamw
from .adam_variants import adabelief as adabelief
from .adam_variants import adan as adan
from .adam_variants import ademamix as ademamix
from .adam_variants import radam as radam
from .adam_variants import yogi as yogi
from .adaptive import adadelta as adadelta
from .adaptive import adafactor as adafactor
from .adaptive import adagrad as adagrad
from .adaptive import rmsprop as rmsprop
from .adaptive import sm3 as sm3
from .layerwise import lamb as lamb
from .layerwise import lars as lars
from .layerwise import muon as muon
from .layerwise import novograd as novograd
from .masks import decay_matrices_only as decay_matrices_only
from .parameter_free import prodigy as prodigy
from .parameter_free import schedule_free as schedule_free
from .parameter_free import schedule_free_eval_params as schedule_free_eval_params
from .plateau import reduce_on_plateau as reduce_on_plateau
from .sgd import lion as lion
from .sgd import momentum as momentum
from .sgd import nesterov as nesterov
from .sgd import sgd as sgd

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "amsgrad",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "nadamw",
    "nesterov",
    "novograd",
    "prodigy",
    "radam",
    "reduce_on_plateau",
    "rmsprop",
    "schedule_free",
    "sgd",
    "sm3",
    "yogi",
]
