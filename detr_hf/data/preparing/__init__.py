"""Rows to what a model trains on: augmented, processed, batched."""
