from .closed_form import Fit as Fit
from .closed_form import fit_maps as fit_maps
from .largest_costs import stitch_costs as stitch_costs
from .moments import Moments as Moments
from .moments import MomentSums as MomentSums
from .output_distances import OutputDistance as OutputDistance
from .output_distances import OutputKind as OutputKind
from .stitch import AffineMap as AffineMap
from .stitch import Stitch as Stitch
from .stitch import StitchedStage as StitchedStage

__all__ = [
    "AffineMap",
    "Fit",
    "MomentSums",
    "Moments",
    "OutputDistance",
    "OutputKind",
    "Stitch",
    "StitchedStage",
    "fit_maps",
    "stitch_costs",
]
