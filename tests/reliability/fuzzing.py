"""Cases by the thousand in a child process: what was accepted, what was refused and how, what died or did not end.

A case is a function of a `random.Random` of its own: the seed and its number are enough to have it again. It returns
for what was accepted, after it has looked at what came (AssertionError: accepted, and wrong), and raises for what was
refused. A refusal is right if it is of a documented kind and holds one of the case's words; `Family.words`.
"""

import json
import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from detr_hf.errors import CheckpointError

DOCUMENTED = (ValueError, TypeError, OSError, CheckpointError, FloatingPointError, StrictDataclassError)
UNNAMED = (UnicodeError, json.JSONDecodeError)  # kinds of ValueError that say nothing of whose they are
LIMIT_SECONDS, LIMIT_BY_CLOCK = 5.0, 120.0  # of processor time, and on a machine that has other work
LIMIT_GIB = 4.0
POLL = 0.02
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Family:
    """What is tried: the case, and the words of which a refusal must hold one (none: any words)."""

    case: Callable[[random.Random], Any]
    words: tuple[str, ...] = ()


@dataclass
class Found:
    """What came of the cases."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of processor time

    @property
    def cases(self) -> int:
        """How many were tried."""
        return self.outcomes.total()

    def __str__(self) -> str:
        refused = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common() if name != "accepted")
        return f"{self.outcomes['accepted']} of {self.cases} accepted; {refused}; slowest {self.slowest:.2f} s"


def fuzz(family: Family, count: int, seed: str = "0", until: float = float("inf"), first: int = 0) -> Found:
    """Returns what came of `count` cases from number `first`; fewer where the time is `until` before."""
    found, end = Found(), first + count
    while first < end and time.monotonic() < until:
        first = _run_child(family, first, end, seed, until, found)
    return found


def _run_child(family: Family, first: int, end: int, seed: str, until: float, found: Found) -> int:
    """Runs cases in a child until they are through, or one kills it or is killed; returns the next case's number."""
    at = mmap.mmap(-1, 8)
    at[:] = struct.pack("<q", first)
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            _work(family, first, end, seed, until, at, writer)
        finally:
            os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    text, current, started, used = b"", first, time.monotonic(), 0.0
    verdict = None
    while True:
        text += _read(reader)
        now = struct.unpack("<q", at[:])[0]
        if now != current:
            current, started, used = now, time.monotonic(), _processor_seconds(process)
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                verdict = f"died of {signal.Signals(os.WTERMSIG(status)).name}"
            break
        spent, waited = _processor_seconds(process) - used, time.monotonic() - started
        if spent > LIMIT_SECONDS or waited > LIMIT_BY_CLOCK or _gib(process) > LIMIT_GIB:
            why = f"took over {LIMIT_GIB} GiB" if _gib(process) > LIMIT_GIB else f"did not end in {spent:.0f} s"
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            verdict = why
            break
        time.sleep(POLL)
    text += _read(reader)
    os.close(reader)
    for line in text.decode().splitlines():
        outcome, seconds, fault = json.loads(line)
        found.outcomes[outcome] += 1
        found.slowest = max(found.slowest, seconds)
        if fault:
            found.faults.append(fault)
    if verdict is None:
        return end
    current = struct.unpack("<q", at[:])[0]
    found.outcomes["died"] += 1
    found.faults.append(f"case {current} {verdict}")
    return current + 1


def _work(family: Family, first: int, end: int, seed: str, until: float, at: mmap.mmap, writer: int) -> None:
    os.set_blocking(writer, True)
    for number in range(first, end):
        if time.monotonic() > until:
            return
        at[:] = struct.pack("<q", number)
        before = time.process_time()
        outcome, fault = outcome_of(family, seed, number)
        line = json.dumps([outcome, time.process_time() - before, fault and f"case {number}: {fault[:600]}"])
        os.write(writer, line.encode() + b"\n")


def outcome_of(family: Family, seed: str, number: int) -> tuple[str, str | None]:
    """Returns "accepted" or the kind of error, and what is wrong with that."""
    try:
        family.case(random.Random(f"{seed} {number}"))
    except AssertionError as error:
        return "accepted", f"accepted, and wrong: {error}"
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
        if not isinstance(error, DOCUMENTED) or isinstance(error, UNNAMED):
            return kind, f"{kind}: {text}"
        if family.words and not any(word in text for word in family.words):
            return kind, f"{kind} names nothing: {text}"
        return kind, None
    return "accepted", None


def _read(reader: int) -> bytes:
    parts = []
    try:
        while part := os.read(reader, 1 << 16):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _gib(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def changed_bytes(content: bytes, chance: random.Random, other: bytes = b"") -> bytes:
    """Returns the content with bits flipped, bytes set, a piece cut, doubled, moved or taken from `other`."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        if not data:
            break
        place, length = chance.randrange(len(data)), chance.choice((1, 2, 4, 8, 50))
        how = chance.randrange(8)
        if how == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif how == 1:  # where formats say what they are
            data[min(place, chance.randrange(64) % len(data))] = chance.randrange(256)
        elif how == 2:
            del data[place:]
        elif how == 3:
            del data[place : place + length]
        elif how == 4:
            data[place:place] = data[:length]
        elif how == 5:
            data[place : place + length] = chance.choice((b"\0", b"\xff", b"\x7f", b"\n", b"9")) * length
        elif how == 6 and other:
            start = chance.randrange(len(other))
            data[place : place + length] = other[start : start + length]
        else:
            data[place : place + 4] = struct.pack(
                chance.choice("<>") + "I", chance.choice((0, 1, 2**31, 2**32 - 1, 65535))
            )
    return bytes(data)
