"""Stitches for a branched network: on every edge where the donor changes, fitted from the top down on a probe.

The maps themselves and their closed form are in the room `stitching`; here is which edges get one, and what it is
fitted on.
"""
