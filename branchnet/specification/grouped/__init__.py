"""Specifications of several networks, for sets of tasks that may overlap.

What one network's specification says is not here, but one folder above.
"""
