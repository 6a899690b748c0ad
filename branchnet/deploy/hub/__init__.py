"""Folders with a model card, as the Hugging Face Hub keeps networks, and the licences of what went into them.

The package huggingface_hub is imported only where something is downloaded or uploaded.
"""
