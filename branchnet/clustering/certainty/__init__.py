"""How sure a choice of a tree is: on other samples of the probe, and beside other trees of its size.

Nothing here trains anything. How trees that were trained differ, `training.studies` says.
"""
