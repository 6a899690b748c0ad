"""Scenes that are rendered from a seed, with the labels of seven tasks.

They serve the demo and examples; data sets of users are read elsewhere.
"""
