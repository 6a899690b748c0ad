"""The demo: seven tasks on procedural scenes, and the run that goes the whole way with them.

The scenes themselves are made in `branchnet.data`.
"""
