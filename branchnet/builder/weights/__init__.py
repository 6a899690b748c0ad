"""What nodes start from: a donor's weights, means of aligned donors, given or random weights, BatchNorm statistics.

The network itself is in `network`.
"""
