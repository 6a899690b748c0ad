"""Fronts over two resources.

The plot of one resource lies in the folder above.
"""
