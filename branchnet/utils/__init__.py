"""Helpers that know nothing of networks or tasks: files, progress, interrupts, modes, lazy names.

What belongs to one room only is kept there.
"""
