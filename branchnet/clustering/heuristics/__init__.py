"""Search for many tasks: initial trees, local search, beam search.

How far its trees may be from the best, `bounds` says.
"""
