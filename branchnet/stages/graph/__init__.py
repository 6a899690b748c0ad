"""What a captured graph says: which tensors are alive where, sizes and costs, structure common to several graphs.

Nothing is captured or executed here.
"""
