"""How good outputs are: metrics, over whole data sets, and against the single-task networks.

Training on labels and distillation are in the folder above.
"""
