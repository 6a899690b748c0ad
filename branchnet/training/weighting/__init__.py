"""How the losses of several tasks become one gradient: weights for the losses, or gradients aggregated node by node.

The methods lie here, not the loop that calls them; TorchJD's aggregators are used where it has them.
"""
