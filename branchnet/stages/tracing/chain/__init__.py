"""Networks as chains of module calls, where neither torch.fx nor torch.export can trace their own code.

The calls are recorded and the longest run of them is found; what comes before and after it stays Python.
"""
