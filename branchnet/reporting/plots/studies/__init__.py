"""Plots of studies: networks that were trained several times.

Those of one network lie in the folder above.
"""
