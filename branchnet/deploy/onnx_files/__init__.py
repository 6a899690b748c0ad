"""ONNX files: called as the network is, what they say of themselves, and several of them in a folder for a server.

Writing one is `branchnet.export`'s work, next to the other formats.
"""
