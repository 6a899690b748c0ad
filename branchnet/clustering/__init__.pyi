from .certainty.advising import Advice as Advice
from .certainty.advising import advise as advise
from .bounds.lower_bounds import lower_bound as lower_bound
from .budgets.budget import Budget as Budget
from .budgets.tree_sizes import stage_shares as stage_shares
from .budgets.tree_sizes import tree_size as tree_size
from .constraints import Constraints as Constraints
from .grouping.group_estimates import GroupEstimates as GroupEstimates
from .grouping.group_estimates import estimate_groups as estimate_groups
from .grouping.measured_grouping import group_by_estimates as group_by_estimates
from .grouping.network_selection import Selection as Selection
from .grouping.network_selection import all_selections as all_selections
from .grouping.network_selection import early_selection as early_selection
from .grouping.network_selection import higher_order_estimates as higher_order_estimates
from .grouping.network_selection import select_networks as select_networks
from .grouping.network_selection import selection_front as selection_front
from .grouping.network_selection import task_sets as task_sets
from .grouping.task_grouping import Grouping as Grouping
from .grouping.task_grouping import group_by_affinity as group_by_affinity
from .grouping.group_table import read_groups as read_groups
from .grouping.random_groups import random_groups as random_groups
from .grouping.sharing_comparison import SharingComparison as SharingComparison
from .grouping.sharing_comparison import compare_sharing as compare_sharing
from .objectives import OBJECTIVES as OBJECTIVES
from .objectives import Objective as Objective
from .additive_losses import StageLosses as StageLosses
from .objectives import clustering_cost as clustering_cost
from .objectives import stage_losses as stage_losses
from .pairwise_estimates import entropy_weights as entropy_weights
from .pairwise_estimates import expected_losses as expected_losses
from .pairwise_estimates import expected_performance as expected_performance
from .pairwise_estimates import smooth_measurements as smooth_measurements
from .refinement import Refinement as Refinement
from .refinement import refine as refine
from .search_result import SearchResult as SearchResult
from .sharing.task_sharing import Sharing as Sharing
from .tree_search import pareto_front as pareto_front
from .tree_search import search as search
from .certainty.tree_stability import Stability as Stability
from .certainty.tree_stability import compare_trees as compare_trees
from .certainty.tree_stability import stability as stability
from .trees.counting import count_trees as count_trees
from .trees.counting import enumerate_trees as enumerate_trees
from .trees.sampling import TreeSampler as TreeSampler
from .trees.sampling import random_tree as random_tree
from .trees.sampling import tree_sampler as tree_sampler
from .trees.tree import Tree as Tree

__all__ = [
    "Advice",
    "Budget",
    "Constraints",
    "GroupEstimates",
    "Grouping",
    "OBJECTIVES",
    "Objective",
    "Refinement",
    "SearchResult",
    "Selection",
    "Sharing",
    "SharingComparison",
    "Stability",
    "StageLosses",
    "Tree",
    "TreeSampler",
    "advise",
    "all_selections",
    "clustering_cost",
    "compare_sharing",
    "compare_trees",
    "count_trees",
    "early_selection",
    "entropy_weights",
    "enumerate_trees",
    "estimate_groups",
    "expected_losses",
    "expected_performance",
    "group_by_affinity",
    "group_by_estimates",
    "higher_order_estimates",
    "lower_bound",
    "pareto_front",
    "random_groups",
    "random_tree",
    "read_groups",
    "refine",
    "search",
    "select_networks",
    "selection_front",
    "smooth_measurements",
    "stability",
    "stage_losses",
    "stage_shares",
    "task_sets",
    "tree_sampler",
    "tree_size",
]
