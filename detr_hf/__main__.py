"""`python -m detr_hf`, the same as `detr-hf`."""

from .cli.main import main

if __name__ == "__main__":  # processes that are spawned read this module again
    main()
