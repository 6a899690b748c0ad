"""The loop that all training goes through: batches, learning rates, devices, the best state, and what is reported.

What is minimised lies one folder up.
"""
