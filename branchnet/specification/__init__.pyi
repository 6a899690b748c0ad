from .architecture import Architecture as Architecture

__all__ = [
    "Architecture",
]
