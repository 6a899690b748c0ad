from .costs import FirstDifference as FirstDifference
from .costs import StageCost as StageCost
from .costs import StageCosts as StageCosts
from .flops import count_flops as count_flops
from .heads.head_form import RawHead as RawHead
from .heads.raw_network import decode as decode
from .heads.raw_network import raw_heads as raw_heads
from .identical_stages import identical_prefixes as identical_prefixes
from .interface import Example as Example
from .interface import Interface as Interface
from .interface import TensorSpec as TensorSpec
from .interface import call as call
from .interface import flat_example as flat_example
from .locations import Location as Location
from .splitting import candidate_locations as candidate_locations
from .splitting import split as split
from .splitting import split_all as split_all
from .staged import CutTensor as CutTensor
from .staged import Stage as Stage
from .staged import StagedNetwork as StagedNetwork

__all__ = [
    "CutTensor",
    "Example",
    "FirstDifference",
    "Interface",
    "Location",
    "RawHead",
    "Stage",
    "StageCost",
    "StageCosts",
    "StagedNetwork",
    "TensorSpec",
    "call",
    "candidate_locations",
    "count_flops",
    "decode",
    "flat_example",
    "raw_heads",
    "identical_prefixes",
    "split",
    "split_all",
]
