"""The code that runs a part of a graph: in-place operations, devices, attribute look-ups, pickling.

Which part that is, the rooms above decide.
"""
