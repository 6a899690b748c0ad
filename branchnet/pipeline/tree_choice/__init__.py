"""Choosing the tree of a run by what networks then do: trees are proposed, built with stitches, and measured.

`proposals` says which trees are tried, `measuring` what each of them does without training on
the inputs of `held_out`.
"""
