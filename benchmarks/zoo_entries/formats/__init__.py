"""Readers of weight files that other programs wrote. They know nothing of the structure of networks."""
