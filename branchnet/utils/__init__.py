"""Small helpers that know nothing of networks: what any Python package could use."""
