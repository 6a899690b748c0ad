"""Studies: several trees trained under equal conditions, and what the differences between them are worth.

How one network is trained lies in the folders next to this one.
"""
