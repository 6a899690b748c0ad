"""Capturing the graph of a network: by torch.fx, by torch.export, or as a chain of module calls.

Where it is cut is decided elsewhere.
"""
