from .batchnorm import reestimate_batchnorm as reestimate_batchnorm
from .distillation import distill as distill
from .evaluation import evaluate as evaluate
from .groups import node_groups as node_groups
from .loop import History as History
from .metrics import Metric as Metric
from .metrics import accuracy as accuracy
from .metrics import explained_variance as explained_variance
from .metrics import kl_divergence as kl_divergence
from .metrics import mean_absolute_error as mean_absolute_error
from .metrics import mean_angle as mean_angle
from .metrics import mean_iou as mean_iou
from .metrics import rmse as rmse
from .metrics import top1_agreement as top1_agreement
from .performance import absolute_changes as absolute_changes
from .performance import multi_task_performance as multi_task_performance
from .performance import relative_changes as relative_changes
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
