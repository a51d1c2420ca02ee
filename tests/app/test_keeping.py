"""The shelf is bounded: in pictures a visitor, in bytes over all, in time."""

from types import SimpleNamespace

import pytest

from detr_hf.app.keeping import Seen, Shelf

FOUND = SimpleNamespace(segmentations=None)


def seen(size: int = 10) -> Seen:
    return Seen("a.png", "m", bytes(size), FOUND)


def kept(shelf: Shelf, visitor: str, numbers: list[int]) -> list[int]:
    found = []
    for number in numbers:
        try:
            shelf.get(visitor, number)
            found.append(number)
        except ValueError as error:
            assert "give it again" in str(error)
    return found


def test_the_oldest_of_a_visitor_makes_room_and_nobody_elses():
    shelf = Shelf(pictures=2)
    first = shelf.put("b", seen())
    numbers = [shelf.put("a", seen()) for _ in range(4)]
    assert kept(shelf, "a", numbers) == numbers[2:] and kept(shelf, "b", [first]) == [first]
    assert kept(shelf, "b", numbers) == []  # another's number opens nothing
    shelf.leave("a")
    assert kept(shelf, "a", numbers) == [] and len(shelf) == 1


def test_bytes_are_bounded_over_all():
    shelf = Shelf(total_bytes=100)
    numbers = [shelf.put(visitor, seen(40)) for visitor in ("a", "b", "c")]
    assert kept(shelf, "a", numbers[:1]) == [] and kept(shelf, "c", numbers[2:]) == numbers[2:]
    assert shelf.size == 80
    huge = shelf.put("d", seen(500))
    assert kept(shelf, "d", [huge]) == [huge] and len(shelf) == 1  # the newest can be asked about, whatever it has


def test_what_is_old_goes():
    now = [0.0]
    shelf = Shelf(seconds=60, clock=lambda: now[0])
    number = shelf.put("a", seen())
    now[0] = 59
    assert kept(shelf, "a", [number]) == [number]
    now[0] = 61
    with pytest.raises(ValueError, match="not in memory"):
        shelf.get("a", number)
    assert len(shelf) == 0
