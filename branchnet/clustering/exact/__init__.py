"""Exact search: dynamic programming over the lattice of partitions, and branch and bound for many tasks.

What is found here is proven best.
"""
