"""One reader a layout; all fill the schema of `detection_data.py`."""
