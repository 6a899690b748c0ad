"""Data sets with labels for several tasks: the official layouts of public ones, and folders or tables of one's own.

Nothing is downloaded, transformed or trained here; losses and metrics for them are chosen in `branchnet.training`.
"""
