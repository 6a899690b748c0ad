from .measure_options import Options as Options
from .measures.canonical_correlation import procrustes as procrustes
from .measures.canonical_correlation import pwcca as pwcca
from .measures.canonical_correlation import svcca as svcca
from .probing_costs import ProbingCost as ProbingCost
from .measures.gradient import gradient_affinity as gradient_affinity
from .probing_costs import probing_cost as probing_cost
from .measures.kernel_alignment import cka as cka
from .measures.pair_measurements import PairMeasurements as PairMeasurements
from .measures.pair_measurements import measured_affinity as measured_affinity
from .measures.rdm_comparison import compare_rdms as compare_rdms
from .measures.rdms import rdm as rdm
from .measures.representational import rsa as rsa
from .reliability import Reliability as Reliability
from .stitched.stitching_loss import stitch_affinity as stitch_affinity
from .tensor import Affinity as Affinity

__all__ = [
    "Affinity",
    "Options",
    "PairMeasurements",
    "ProbingCost",
    "Reliability",
    "cka",
    "compare_rdms",
    "gradient_affinity",
    "measured_affinity",
    "probing_cost",
    "procrustes",
    "pwcca",
    "rdm",
    "rsa",
    "stitch_affinity",
    "svcca",
]
