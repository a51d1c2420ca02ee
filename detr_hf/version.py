"""The version of this package and of others, in a file that imports nothing."""

__version__ = "0.1.0"


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, None where there is none; this one need not be installed."""
    from importlib import metadata

    try:
        return __version__ if package.replace("_", "-") == "detr-hf" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
