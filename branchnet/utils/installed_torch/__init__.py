"""What the torch that is installed has: its private names, and the devices of this machine.

Nothing here computes.
"""
