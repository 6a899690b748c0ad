"""Trees of branch points: the type, counting, enumerating, sampling, drawing as text.

Nothing here knows costs of affinities.
"""
