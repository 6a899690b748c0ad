"""How certain a choice of a tree is: on other samples of the probe, and compared with other trees of its size.

Nothing here trains anything. How trees that were trained differ, `training.studies` says.
"""
