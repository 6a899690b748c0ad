from .comparing import compare_rdms as compare_rdms
from .options import Options as Options
from .rdms import rdm as rdm
from .reliability import Reliability as Reliability
from .representational import rsa as rsa
from .tensor import Affinity as Affinity

__all__ = ["Affinity", "Options", "Reliability", "compare_rdms", "rdm", "rsa"]
