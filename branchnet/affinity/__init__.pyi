from .alignment import cka as cka
from .comparing import compare_rdms as compare_rdms
from .options import Options as Options
from .rdms import rdm as rdm
from .reliability import Reliability as Reliability
from .representational import rsa as rsa
from .subspaces import procrustes as procrustes
from .subspaces import pwcca as pwcca
from .subspaces import svcca as svcca
from .tensor import Affinity as Affinity

__all__ = ["Affinity", "Options", "Reliability", "cka", "compare_rdms", "procrustes", "pwcca", "rdm", "rsa", "svcca"]
