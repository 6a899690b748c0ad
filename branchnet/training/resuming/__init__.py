"""Training that goes on after an interruption: checkpoints, and what a run was started from.

The loop itself lies one folder up.
"""
