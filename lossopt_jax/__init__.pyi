# The public names, each once; __init__.py loads each from here when it is first used.
from . import data as data
from . import losses as losses
from . import models as models
from . import optimizers as optimizers
from . import reduce as reduce
from . import schedules as schedules
from ._types import Batch as Batch
from ._types import Scalar as Scalar
from ._types import Vector as Vector
from .combine import weighted_sum as weighted_sum
from .models import Model as Model
from .models import from_linen as from_linen
from .models import from_nnx as from_nnx
from .recipe import Bound as Bound
from .recipe import Recipe as Recipe
from .recipe import bind as bind
from .recipe import numbers as numbers
from .recipe import with_numbers as with_numbers
from .step import TrainState as TrainState
from .step import eval_step as eval_step
from .step import init_state as init_state
from .step import train_step as train_step
from .sweep import LanePlan as LanePlan
from .sweep import Swept as Swept
from .sweep import Trials as Trials
from .sweep import choice as choice
from .sweep import grid as grid
from .sweep import int_uniform as int_uniform
from .sweep import log_uniform as log_uniform
from .sweep import sample as sample
from .sweep import sweep as sweep
from .sweep import uniform as uniform
from .train import Fitted as Fitted
from .train import Run as Run
from .train import fit as fit

__version__: str
