"""Measuring this package beside transformers' own DETR; `detr-hf benchmark` is the way in."""
