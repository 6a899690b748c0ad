"""The code that runs a subgraph: in-place operations, devices, attribute look-ups, pickling.

Which nodes make up the subgraph is decided by `stages` itself.
"""
