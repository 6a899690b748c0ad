"""Budgets, and what trees cost in their units.

Searches keep to them; no tree is searched here.
"""
