"""`python -m detr_hf`, the same as `detr-hf`."""

from .cli.app import main

main()
