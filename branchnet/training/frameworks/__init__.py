"""Branched networks as modules for the training loops of Lightning and of Hugging Face.

The losses, weightings and metrics are those of `fit`. The loops, devices and checkpoints are the framework's own.
"""
