"""The verbs of the command, one module each.

What they have in common lies one folder up.
"""
