"""A run with labels: the sources that a config names, single-task networks trained on them, and the branched one.

What it has in common with a run without labels, from the affinities to the page, lies one folder up.
"""
