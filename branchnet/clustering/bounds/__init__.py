"""Lower bounds on the cost of every tree within a budget.

They certify the gap of trees that were not proven best.
"""
