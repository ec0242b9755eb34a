"""Losses: pure functions (outputs [*b, ...], targets [*b, ...], *, numbers) -> values [*b, ...]; none averages.

`__all__` is the catalogue: each name in it is a loss, and what else is here helps to use one.
"""

from . import classification as _classification
from . import distance as _distance
from . import lovasz as _lovasz
from . import regression as _regression
from . import segmentation as _segmentation
from . import segmentation_sigmoid as _segmentation_sigmoid
from . import topology as _topology
from ._regions import RegionStatistics as RegionStatistics
from ._regions import binary_region_statistics as binary_region_statistics
from ._regions import dice_from as dice_from
from ._regions import generalized_dice_from as generalized_dice_from
from ._regions import iou_from as iou_from
from ._regions import multilabel_region_statistics as multilabel_region_statistics
from ._regions import over_batch as over_batch
from ._regions import region_statistics as region_statistics
from ._regions import tversky_from as tversky_from
from .classification import binary_cross_entropy as binary_cross_entropy
from .classification import cross_entropy as cross_entropy
from .distance import binary_boundary as binary_boundary
from .distance import binary_hausdorff as binary_hausdorff
from .distance import border_distance as border_distance
from .distance import boundary as boundary
from .distance import distance_transform as distance_transform
from .distance import hausdorff as hausdorff
from .distance import signed_distance as signed_distance
from .lovasz import lovasz_hinge as lovasz_hinge
from .lovasz import lovasz_softmax as lovasz_softmax
from .regression import huber as huber
from .regression import mae as mae
from .regression import mse as mse
from .segmentation import batch_dice as batch_dice
from .segmentation import batch_iou as batch_iou
from .segmentation import batch_tversky as batch_tversky
from .segmentation import dice as dice
from .segmentation import focal_tversky as focal_tversky
from .segmentation import generalized_dice as generalized_dice
from .segmentation import iou as iou
from .segmentation import log_cosh_dice as log_cosh_dice
from .segmentation import tversky as tversky
from .segmentation_sigmoid import batch_multilabel_dice as batch_multilabel_dice
from .segmentation_sigmoid import batch_multilabel_iou as batch_multilabel_iou
from .segmentation_sigmoid import binary_dice as binary_dice
from .segmentation_sigmoid import binary_focal_tversky as binary_focal_tversky
from .segmentation_sigmoid import binary_iou as binary_iou
from .segmentation_sigmoid import binary_log_cosh_dice as binary_log_cosh_dice
from .segmentation_sigmoid import binary_tversky as binary_tversky
from .segmentation_sigmoid import multilabel_dice as multilabel_dice
from .segmentation_sigmoid import multilabel_focal_tversky as multilabel_focal_tversky
from .segmentation_sigmoid import multilabel_iou as multilabel_iou
from .segmentation_sigmoid import multilabel_tversky as multilabel_tversky
from .topology import binary_cl_dice as binary_cl_dice
from .topology import cl_dice as cl_dice
from .topology import soft_skeleton as soft_skeleton

__all__ = [
    *_classification.__all__,
    *_regression.__all__,
    *_segmentation.__all__,
    *_segmentation_sigmoid.__all__,
    *_lovasz.__all__,
    *_distance.__all__,
    *_topology.__all__,
]
