from .building import build as build
from .network.branched_network import BranchedNetwork as BranchedNetwork
from .network.grouped_networks import GroupedNetworks as GroupedNetworks
from .network.node import Node as Node
from .network.parallel import replicate as replicate
from .network.parallel import shard as shard
from .network.separate_networks import SeparateNetworks as SeparateNetworks
from .sharing_network import SharingNetwork as SharingNetwork
from .network.surgery import merge_nodes as merge_nodes
from .network.surgery import remove_task as remove_task
from .network.surgery import split_node as split_node
from .network.task_path import TaskPath as TaskPath
from .stitches.added_task import add_task as add_task
from .weights.averaging import weight_distance as weight_distance
from .weights.donors import choose_donors as choose_donors
from .weights.initialisation import Initialisation as Initialisation
from .weights.initialisation import NodeStart as NodeStart
from .weights.normalisation import estimate_batchnorm as estimate_batchnorm

__all__ = [
    "BranchedNetwork",
    "GroupedNetworks",
    "Initialisation",
    "Node",
    "NodeStart",
    "SeparateNetworks",
    "SharingNetwork",
    "TaskPath",
    "add_task",
    "build",
    "choose_donors",
    "estimate_batchnorm",
    "merge_nodes",
    "remove_task",
    "replicate",
    "shard",
    "split_node",
    "weight_distance",
]
