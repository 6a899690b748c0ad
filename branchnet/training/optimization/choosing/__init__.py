"""What held-out samples decide: the learning rate of a run, and which state of the network is kept.

How they are read lies in `held_out_samples`, one folder up; when they are measured, in the loop.
"""
