"""Losses for labels, in which missing labels do not count, and the usual loss and metric for each kind of label.

How losses are weighted against each other, and what is trained with them, is decided elsewhere.
"""
