"""Losses: pure functions (outputs [*b, ...], targets [*b, ...], *, numbers) -> values [*b, ...]; none averages.

`__all__` is the catalogue: each name in it is a loss, and what else is here helps to use one.
"""

from . import classification as _classification
from . import regression as _regression
from . import segmentation as _segmentation
from .classification import binary_cross_entropy as binary_cross_entropy
from .classification import cross_entropy as cross_entropy
from .regression import huber as huber
from .regression import mae as mae
from .regression import mse as mse
from .segmentation import dice as dice
from .segmentation import iou as iou

__all__ = [
    *_classification.__all__,
    *_regression.__all__,
    *_segmentation.__all__,
]
