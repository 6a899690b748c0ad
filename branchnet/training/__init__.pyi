from .batchnorm import reestimate_batchnorm as reestimate_batchnorm
from .distillation import distill as distill
from .judging.agreement import cohen_kappa as cohen_kappa
from .judging.agreement import explained_divergence as explained_divergence
from .judging.evaluation import evaluate as evaluate
from .grouped_training import GroupedHistory as GroupedHistory
from .groups import node_groups as node_groups
from .loop import History as History
from .judging.metrics import Metric as Metric
from .judging.metrics import accuracy as accuracy
from .judging.metrics import explained_variance as explained_variance
from .judging.metrics import kl_divergence as kl_divergence
from .judging.metrics import mean_absolute_error as mean_absolute_error
from .judging.metrics import mean_angle as mean_angle
from .judging.metrics import mean_iou as mean_iou
from .judging.metrics import rmse as rmse
from .judging.metrics import top1_agreement as top1_agreement
from .judging.performance import absolute_changes as absolute_changes
from .judging.performance import multi_task_performance as multi_task_performance
from .judging.performance import relative_changes as relative_changes
from .supervised import fit as fit
from .teachers import Teachers as Teachers

__all__ = [
    "GroupedHistory",
    "History",
    "Metric",
    "Teachers",
    "absolute_changes",
    "accuracy",
    "cohen_kappa",
    "distill",
    "evaluate",
    "explained_divergence",
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
