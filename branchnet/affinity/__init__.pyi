from .alignment import cka as cka
from .comparing import compare_rdms as compare_rdms
from .lookahead import ProbingCost as ProbingCost
from .lookahead import gradient_affinity as gradient_affinity
from .lookahead import probing_cost as probing_cost
from .measured import measured_affinity as measured_affinity
from .options import Options as Options
from .rdms import rdm as rdm
from .reliability import Reliability as Reliability
from .representational import rsa as rsa
from .subspaces import procrustes as procrustes
from .subspaces import pwcca as pwcca
from .subspaces import svcca as svcca
from .tensor import Affinity as Affinity

__all__ = [
    "Affinity",
    "Options",
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
    "svcca",
]
