"""Measuring this package beside transformers' own DETR; `python -m benchmarks NAME` is the way in."""
