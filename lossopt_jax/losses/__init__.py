"""Losses: pure functions (outputs [*b, ...], targets [*b, ...], *, numbers) -> values [*b, ...]; none averages.

`__all__` is the catalogue: each name in it is a loss, and what else is here helps to use one. Under `jit` a value may differ from the
eager one in its last bits (three of 24, measured), a small part of a gradient in more: XLA then joins products and sums into one rounding.
"""

from . import classification as _classification
from . import combine as _combine
from . import compound as _compound
from . import contrastive as _contrastive
from . import distance as _distance
from . import language as _language
from . import likelihood as _likelihood
from . import linear as _linear
from . import lovasz as _lovasz
from . import margins as _margins
from . import metric as _metric
from . import noisy as _noisy
from . import ranking as _ranking
from . import regression as _regression
from . import segmentation as _segmentation
from . import segmentation_sigmoid as _segmentation_sigmoid
from . import topology as _topology
from . import transcripts as _transcripts
from ._labels import outputs_for as outputs_for
from ._regions import RegionStatistics as RegionStatistics
from ._regions import binary_region_statistics as binary_region_statistics
from ._regions import dice_from as dice_from
from ._regions import generalized_dice_from as generalized_dice_from
from ._regions import iou_from as iou_from
from ._regions import multilabel_region_statistics as multilabel_region_statistics
from ._regions import over_batch as over_batch
from ._regions import region_statistics as region_statistics
from ._regions import tversky_from as tversky_from
from .classification import asymmetric as asymmetric
from .classification import binary_cross_entropy as binary_cross_entropy
from .classification import binary_focal as binary_focal
from .classification import cross_entropy as cross_entropy
from .classification import focal as focal
from .classification import js_divergence as js_divergence
from .classification import kl_divergence as kl_divergence
from .classification import multilabel_soft_margin as multilabel_soft_margin
from .classification import nll as nll
from .classification import poly as poly
from .combine import uncertainty_weighted as uncertainty_weighted
from .combine import weighted_sum as weighted_sum
from .combine import weighted_tasks as weighted_tasks
from .compound import binary_dice_cross_entropy as binary_dice_cross_entropy
from .compound import binary_dice_focal as binary_dice_focal
from .compound import dice_cross_entropy as dice_cross_entropy
from .compound import dice_focal as dice_focal
from .contrastive import arcface as arcface
from .contrastive import clip as clip
from .contrastive import contrastive as contrastive
from .contrastive import cosface as cosface
from .contrastive import cosine as cosine
from .contrastive import cosine_embedding as cosine_embedding
from .contrastive import info_nce as info_nce
from .contrastive import ntxent as ntxent
from .contrastive import siglip as siglip
from .distance import binary_boundary as binary_boundary
from .distance import binary_hausdorff as binary_hausdorff
from .distance import border_distance as border_distance
from .distance import boundary as boundary
from .distance import distance_transform as distance_transform
from .distance import hausdorff as hausdorff
from .distance import signed_distance as signed_distance
from .language import distillation as distillation
from .language import dpo as dpo
from .language import ipo as ipo
from .language import sequence_log_probs as sequence_log_probs
from .language import z_loss as z_loss
from .likelihood import gaussian_nll as gaussian_nll
from .likelihood import laplace_nll as laplace_nll
from .likelihood import poisson_nll as poisson_nll
from .likelihood import student_t_nll as student_t_nll
from .likelihood import tweedie as tweedie
from .linear import Head as Head
from .linear import linear_cross_entropy as linear_cross_entropy
from .lovasz import lovasz_hinge as lovasz_hinge
from .lovasz import lovasz_softmax as lovasz_softmax
from .margins import hinge as hinge
from .margins import multi_margin as multi_margin
from .margins import multiclass_hinge as multiclass_hinge
from .margins import ordinal as ordinal
from .margins import sparsemax as sparsemax
from .margins import squared_hinge as squared_hinge
from .metric import mine_batch_hard as mine_batch_hard
from .metric import mine_semi_hard as mine_semi_hard
from .metric import supervised_contrastive as supervised_contrastive
from .metric import triplet as triplet
from .metric import triplet_batch_hard as triplet_batch_hard
from .metric import triplet_semi_hard as triplet_semi_hard
from .noisy import class_balanced as class_balanced
from .noisy import class_balanced_weights as class_balanced_weights
from .noisy import evidential as evidential
from .noisy import generalized_cross_entropy as generalized_cross_entropy
from .noisy import logit_adjusted as logit_adjusted
from .noisy import symmetric_cross_entropy as symmetric_cross_entropy
from .ranking import lambdarank as lambdarank
from .ranking import listwise_softmax as listwise_softmax
from .ranking import margin_ranking as margin_ranking
from .ranking import pairwise_logistic as pairwise_logistic
from .regression import adaptive_robust as adaptive_robust
from .regression import charbonnier as charbonnier
from .regression import expectile as expectile
from .regression import huber as huber
from .regression import log_cosh as log_cosh
from .regression import mae as mae
from .regression import mape as mape
from .regression import mse as mse
from .regression import msle as msle
from .regression import quantile as quantile
from .regression import smooth_l1 as smooth_l1
from .regression import wing as wing
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
from .transcripts import ctc as ctc

__all__ = [
    *_classification.__all__,
    *_likelihood.__all__,
    *_linear.__all__,
    *_language.__all__,
    *_transcripts.__all__,
    *_margins.__all__,
    *_noisy.__all__,
    *_regression.__all__,
    *_segmentation.__all__,
    *_segmentation_sigmoid.__all__,
    *_lovasz.__all__,
    *_distance.__all__,
    *_topology.__all__,
    *_compound.__all__,
    *_combine.__all__,
    *_contrastive.__all__,
    *_metric.__all__,
    *_ranking.__all__,
]
