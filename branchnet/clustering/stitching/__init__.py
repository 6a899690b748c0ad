"""Trees judged by the stitching loss: donors that keep their branch, chains, exact fronts and an integer programme.

Numbers only: stitches are fitted elsewhere, and how their losses become an affinity does not matter here.
"""
