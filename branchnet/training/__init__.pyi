from .batchnorm import reestimate_batchnorm as reestimate_batchnorm
from .distillation import distill as distill
from .judging.agreement import cohen_kappa as cohen_kappa
from .judging.agreement import explained_divergence as explained_divergence
from .judging.evaluation import evaluate as evaluate
from .optimization.groups import node_groups as node_groups
from .optimization.history import History as History
from .optimization.history import Measurement as Measurement
from .optimization.observers import Event as Event
from .label_losses.masked_losses import absolute_loss as absolute_loss
from .label_losses.masked_losses import binary_loss as binary_loss
from .label_losses.masked_losses import class_loss as class_loss
from .label_losses.masked_losses import cosine_loss as cosine_loss
from .label_losses.masked_losses import direction_loss as direction_loss
from .label_losses.masked_losses import squared_loss as squared_loss
from .label_losses.standard_choices import standard_losses as standard_losses
from .label_losses.standard_choices import standard_metrics as standard_metrics
from .judging.metric import Metric as Metric
from .grouped_training import GroupedHistory as GroupedHistory
from .judging.metrics import accuracy as accuracy
from .judging.metrics import explained_variance as explained_variance
from .judging.metrics import kl_divergence as kl_divergence
from .judging.metrics import mean_absolute_error as mean_absolute_error
from .judging.metrics import mean_iou as mean_iou
from .judging.metrics import rmse as rmse
from .judging.metrics import top1_agreement as top1_agreement
from .judging.angle_metrics import explained_direction as explained_direction
from .judging.angle_metrics import mean_angle as mean_angle
from .judging.angle_metrics import median_angle as median_angle
from .judging.angle_metrics import share_within_angle as share_within_angle
from .judging.binary_metrics import area_under_roc as area_under_roc
from .judging.binary_metrics import average_precision as average_precision
from .judging.binary_metrics import edge_f_score as edge_f_score
from .judging.binary_metrics import saliency_iou as saliency_iou
from .judging.depth_metrics import absolute_relative_error as absolute_relative_error
from .judging.depth_metrics import log10_error as log10_error
from .judging.depth_metrics import log_rmse as log_rmse
from .judging.metrics import r_squared as r_squared
from .judging.performance import delta as delta
from .judging.constant_baseline import constant_answers as constant_answers
from .judging.constant_baseline import constant_scores as constant_scores
from .judging.foreign_metrics import read_metric as read_metric
from .judging.performance import absolute_changes as absolute_changes
from .judging.performance import multi_task_performance as multi_task_performance
from .judging.performance import relative_changes as relative_changes
from .frameworks.lightning_module import LightningBranched as LightningBranched
from .frameworks.trainer_module import for_trainer as for_trainer
from .studies.tree_study import compare as compare
from .studies.paired_differences import Estimate as Estimate
from .studies.study import PairedDifference as PairedDifference
from .studies.study import Study as Study
from .studies.study import StudyRun as StudyRun
from .supervised import fit as fit
from .teachers import Teachers as Teachers
from .weighting.gradient_weightings import Aggregate as Aggregate
from .weighting.named_weightings import weighting_of as weighting_of
from .weighting.nash import nash_mtl as nash_mtl
from .weighting.per_node import backward_per_node as backward_per_node
from .weighting.weighting_base import Weighting as Weighting

__all__ = [
    "Aggregate",
    "Estimate",
    "Event",
    "GroupedHistory",
    "History",
    "LightningBranched",
    "Measurement",
    "Metric",
    "PairedDifference",
    "Study",
    "StudyRun",
    "Teachers",
    "Weighting",
    "absolute_changes",
    "absolute_loss",
    "absolute_relative_error",
    "accuracy",
    "area_under_roc",
    "average_precision",
    "backward_per_node",
    "binary_loss",
    "class_loss",
    "cohen_kappa",
    "compare",
    "constant_answers",
    "constant_scores",
    "cosine_loss",
    "delta",
    "direction_loss",
    "distill",
    "edge_f_score",
    "evaluate",
    "explained_direction",
    "explained_divergence",
    "explained_variance",
    "fit",
    "for_trainer",
    "kl_divergence",
    "log10_error",
    "log_rmse",
    "mean_absolute_error",
    "mean_angle",
    "mean_iou",
    "median_angle",
    "multi_task_performance",
    "nash_mtl",
    "node_groups",
    "r_squared",
    "read_metric",
    "reestimate_batchnorm",
    "relative_changes",
    "rmse",
    "saliency_iou",
    "share_within_angle",
    "squared_loss",
    "standard_losses",
    "standard_metrics",
    "top1_agreement",
    "weighting_of",
]
