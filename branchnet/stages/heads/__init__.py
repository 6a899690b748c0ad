"""Heads that decode: a network that returns their raw tensors instead, and the decoding of these afterwards.

Not here: heads as the last part of a staged network, which `staged.py` has.
"""
