from .batchnorm import reestimate_batchnorm as reestimate_batchnorm
from .distillation import distill as distill
from .evaluation.evaluating import evaluate as evaluate
from .groups import node_groups as node_groups
from .loop import History as History
from .evaluation.metrics import Metric as Metric
from .evaluation.metrics import accuracy as accuracy
from .evaluation.metrics import explained_variance as explained_variance
from .evaluation.metrics import kl_divergence as kl_divergence
from .evaluation.metrics import mean_absolute_error as mean_absolute_error
from .evaluation.metrics import mean_angle as mean_angle
from .evaluation.metrics import mean_iou as mean_iou
from .evaluation.metrics import rmse as rmse
from .evaluation.metrics import top1_agreement as top1_agreement
from .evaluation.performance import absolute_changes as absolute_changes
from .evaluation.performance import multi_task_performance as multi_task_performance
from .evaluation.performance import relative_changes as relative_changes
from .supervised import fit as fit
from .teachers import Teachers as Teachers

__all__ = [
    "History",
    "Metric",
    "Teachers",
    "absolute_changes",
    "accuracy",
    "distill",
    "evaluate",
    "explained_variance",
    "fit",
    "kl_divergence",
    "mean_absolute_error",
    "mean_angle",
    "mean_iou",
    "multi_task_performance",
    "node_groups",
    "reestimate_batchnorm",
    "relative_changes",
    "rmse",
    "top1_agreement",
]
