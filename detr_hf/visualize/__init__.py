"""Pictures of what a model found, drawn with Pillow."""
