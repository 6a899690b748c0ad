"""How far outputs and features are from those of the single-task networks.

The networks themselves, as teachers, lie one folder up.
"""
