"""What `gpu.py` measures, one module for each part, and what runs, records and judges the parts."""
