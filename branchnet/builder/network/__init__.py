"""The branched network: nodes, paths, surgery, freezing, recomputation, several processes.

Which weights it starts with, `weights` decides.
"""
