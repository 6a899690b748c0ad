"""Post-training quantisation of an exported network, node by node: what each costs, and which are worth it.

ONNX Runtime's quantiser does the arithmetic; here are the measurement of losses and the choice of nodes.
"""
