"""Exact search: dynamic programming over the lattice of partitions.

What is found here is proven best; the bounds that prove other trees lie in `bounds`.
"""
