from .architecture import Architecture as Architecture
from .grouped.grouped_architecture import GroupedArchitecture as GroupedArchitecture

__all__ = [
    "Architecture",
    "GroupedArchitecture",
]
