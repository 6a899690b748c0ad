"""The config of a run: its fields, and the networks, images and functions that it names.

It is trusted code, unlike the specification of an architecture, which lives in `branchnet.specification`.
"""
