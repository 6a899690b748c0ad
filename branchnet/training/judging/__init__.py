"""How good a network is: metrics over a data set, and performance against the single-task networks.

Nothing is trained here.
"""
