"""`make reliability` sees what it looks for; some of its cases with each run of the suite."""

import faulthandler
import os
import random
import signal
import tempfile

import pytest

from . import fuzzing
from .families import FAMILIES
from .fuzzing import Family, fuzz
from .run import Budget, main, parts
from .running import held, slope, soak


def test_some_of_all_cases(capsys):
    assert main([*FAMILIES, "--scale", "0.0004"]) == 0
    table = capsys.readouterr().out
    assert all(f"\n{name} " in table and f"run {name} --scale 0.0004 --seed 0" in table for name in FAMILIES)
    assert " of 20 accepted" in table and "FAULTS" not in table


def spins(chance: random.Random) -> None:
    while True:
        pass


def dies(chance: random.Random) -> None:
    faulthandler.disable()  # its long story would stand in the output of the tests
    os.kill(os.getpid(), signal.SIGSEGV)


def refuses(error: BaseException):
    def case(chance: random.Random) -> None:
        raise error

    return case


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (spins, "did not end in"),
        (dies, "died of SIGSEGV"),
        (refuses(KeyError("bbox")), "KeyError: 'bbox'"),
        (refuses(RuntimeError("shape")), "RuntimeError: shape"),
        (refuses(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")), "UnicodeDecodeError"),
        (refuses(ValueError("too many dimensions")), "ValueError names nothing"),
        (refuses(AssertionError("a box of -5")), "accepted, and wrong: a box of -5"),
        (refuses(ValueError("annotation 17")), None),
        (lambda chance: None, None),
    ],
)
def test_what_is_a_fault(case, fault, monkeypatch):
    """In the middle of three cases, of which the others go on."""
    monkeypatch.setattr(fuzzing, "LIMIT_SECONDS", 0.1)
    middle = {"0 1": case}

    def one_of_three(chance: random.Random) -> None:
        middle.get(order.pop(0), lambda chance: None)(chance)

    order = ["0 0", "0 1", "0 2"]
    if case in (spins, dies):  # the child that goes on starts behind the case
        found = fuzz(Family(lambda chance: case(chance) if chance.random() < 0.5 else None, ("annotation",)), 6)
        assert found.outcomes["died"] == len(found.faults) > 0 and found.cases == 6
    else:
        found = fuzz(Family(one_of_three, ("annotation",)), 3)
        assert found.cases == 3 and len(found.faults) == (fault is not None)
    assert fault is None or fault in found.faults[0]


def test_the_same_seed_gives_the_same_cases():
    drawn = Family(lambda chance: (_ for _ in ()).throw(ValueError(f"annotation {chance.random()}")))
    outcomes = [fuzzing.outcome_of(drawn, "7", number) for number in (3, 3, 4)]
    assert outcomes[0] == outcomes[1] == ("ValueError", None)
    numbers = [random.Random(f"7 {number}").random() for number in (3, 3, 4)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_growth_and_what_stays_open_are_faults():
    def samples(mib: float, handles: int):
        return [
            (n * 100, {"mib": 500 + n * mib, "handles": 5 + n * handles, "threads": 1, "files": 0}) for n in range(20)
        ]

    assert slope(samples(0.1, 0))[1] == []
    assert "memory grows by 20.0 MiB" in slope(samples(2.0, 0))[1][0]
    assert "handles" in slope(samples(0.0, 1))[1][0]


@pytest.mark.parametrize("own", [True, False])
def test_of_files_only_what_the_work_leaves_is_a_fault(own, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # in which others leave files too

    def work(budget: Budget) -> list:
        before = held()
        tempfile.mkdtemp(dir=None if own else tmp_path)
        return [(0, before), (1, before), (2, before | {"files": len(os.listdir(tempfile.gettempdir()))})]

    (tmp_path / "part").mkdir()
    _, faults = soak(work)(Budget(1.0, 0.0, "0", tmp_path / "part"))
    assert faults == (["files: 0 to 1"] if own else [])


def test_an_unknown_part_is_named_and_every_part_is_there(capsys):
    with pytest.raises(SystemExit):
        main(["fuzz"])
    assert "there is no part fuzz; there are pictures" in " ".join(capsys.readouterr().err.split())
    assert len(parts()) == 24 and {"kill-push", "full-disk", "soak-train", "catalogue"} <= set(parts())
