"""The features of networks on the probe: read, kept in memory or in a cache, spread over processes.

How features are compared lies in `measures`.
"""
