"""Helpers that know nothing of networks or tasks: files, progress, interrupts, modes.

What belongs to one room only is kept there.
"""
