"""Random changes of images together with all their labels, repeatable for every sample.

The changes themselves are torchvision's; what is here makes labels follow them.
"""
