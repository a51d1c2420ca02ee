"""Training: DETRTrainer with its arguments and recipes, weight averaging, and checkpoints that are whole or absent."""
