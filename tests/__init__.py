"""Tests, a folder for each room of the library. Helpers of several test files are in the room's `toys` module."""

import os

# The networks here are tiny: further threads would only wait for each other, and each worker has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
