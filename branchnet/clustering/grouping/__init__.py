"""Tasks divided among whole networks: selection (Standley et al. 2020) and groups (TAG, Fifty et al. 2021).

Trees are searched elsewhere.
"""
