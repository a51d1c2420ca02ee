"""The parts of `train_digits.py`: recipe, batches, the two stages, and the report."""
