"""Predictions over many pictures that go on where they were when they are stopped."""
