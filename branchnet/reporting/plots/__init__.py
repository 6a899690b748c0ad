"""Pictures: affinities, trees, fronts, latencies, metrics, samples.

The numbers that they show are computed elsewhere.
"""
