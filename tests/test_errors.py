"""What is raised where a package is missing."""

import pytest

from detr_hf.errors import install_hint


def test_a_missing_package_is_told_with_the_remedy():
    with pytest.raises(ImportError) as caught, install_hint("It needs this: pip install this"):
        import no_such_package  # noqa: F401
    assert str(caught.value) == "It needs this: pip install this"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), install_hint("It needs this"):
        raise ZeroDivisionError
