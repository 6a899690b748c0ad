"""Choosing the tree of a run by what networks then do: trees are proposed, and measured with stitches.

`proposals` says which trees are tried, `work` how many, `measuring` what each of them does without training,
`donor_paths` what trees have in common.
"""
