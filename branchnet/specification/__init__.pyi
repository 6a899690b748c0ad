from .architecture import Architecture as Architecture
from .grouped.grouped_architecture import GroupedArchitecture as GroupedArchitecture
from .grouped.sharing_architecture import SharingArchitecture as SharingArchitecture

__all__ = [
    "Architecture",
    "GroupedArchitecture",
    "SharingArchitecture",
]
