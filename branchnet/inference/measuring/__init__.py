"""How the entries of a latency table are run and timed.

The table itself, and what it predicts, lies one folder up.
"""
