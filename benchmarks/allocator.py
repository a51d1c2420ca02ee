"""A benchmark run again with the memory allocator told otherwise, which must be before its process starts."""

import os
import subprocess
import sys

import typer

# glibc then keeps freed activations instead of returning them to the system and zeroing them anew at every operation.
TUNED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def ran_tuned(wanted: bool) -> bool:
    """Runs this same command again with the tuned allocator if that is `wanted`; whether it did."""
    if not wanted or all(os.environ.get(name) == value for name, value in TUNED_ALLOCATOR.items()):
        return False
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *sys.argv[1:]], env={**os.environ, **TUNED_ALLOCATOR}, check=False
    )
    if done.returncode:
        raise typer.Exit(done.returncode)
    return True


__all__ = ["ran_tuned"]
