"""The version of the package, which stands in `branchnet/__init__.py`, where every room can read it."""

from branchnet import __version__ as __version__
