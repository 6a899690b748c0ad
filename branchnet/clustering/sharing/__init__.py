"""Sharing that is not nested: a partition of the tasks for each stage on its own.

For networks that are called for one task at a time; trees, which several tasks may run through at once, are next door.
"""
