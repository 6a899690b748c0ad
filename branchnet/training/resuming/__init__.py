"""Interrupted training goes on: checkpoints, and hashes by which a run is known again.

The steps themselves are in the loop, in the folder above.
"""
