"""`python -m detr_hf.cli`, the same as `detr-hf`."""

from .app import main

main()
