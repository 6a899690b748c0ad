"""The measures of affinity: RSA, kernel alignment, canonical correlations, gradients, measured pairs.

How features are read lies in `features`.
"""
