"""What the page remembers, in memory alone: the last pictures of each visitor, bounded in number, bytes and time.

With it a click on an object needs no second forward pass, and nothing has to lie on a disk.
"""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..inference.results import Detections
    from ..visualize.attention_maps import Attention

PICTURES = 24  # of one visitor
TOTAL_BYTES = 1_500_000_000  # of all visitors
SECONDS = 3600


@dataclass(frozen=True)
class Seen:
    """One picture that a model looked at: all objects over the lowest threshold, and the attention if there is any."""

    name: str
    model: str
    content: bytes
    detections: "Detections"
    attention: "Attention | None" = None

    @property
    def size(self) -> int:
        """The bytes that it holds in memory, but for small change."""
        size = len(self.content)
        if self.attention is not None:
            maps = (self.attention.decoder, self.attention.encoder_weights)
            size += sum(map_.nbytes for map_ in maps if map_ is not None)
        return size + sum(len(str(one["counts"])) for one in self.detections.segmentations or ())


class Shelf:
    """What visitors' pictures gave, by visitor and number; the oldest make room."""

    def __init__(
        self,
        pictures: int = PICTURES,
        total_bytes: int = TOTAL_BYTES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.pictures, self.total_bytes, self.seconds, self.clock = pictures, total_bytes, seconds, clock
        self._kept: OrderedDict[tuple[str, int], tuple[float, Seen]] = OrderedDict()
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def put(self, visitor: str, seen: Seen) -> int:
        """Returns the number under which `seen` can be had again."""
        with self._lock:
            number = next(self._numbers)
            self._kept[visitor, number] = (self.clock(), seen)
            own = [key for key in self._kept if key[0] == visitor]
            for key in own[: -self.pictures]:
                del self._kept[key]
            self._drop_old()
            while self.size > self.total_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return number

    def get(self, visitor: str, number: int) -> Seen:
        """Returns what a visitor's picture gave.

        Raises:
            ValueError: it is not here any more.
        """
        with self._lock:
            self._drop_old()
            if (visitor, number) not in self._kept:
                raise ValueError(
                    "This picture is not in memory any more, where the last ones are kept for an hour: give it again."
                )
            return self._kept[visitor, number][1]

    def leave(self, visitor: str | None) -> None:
        """Forgets all of a visitor."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == visitor]:
                del self._kept[key]

    @property
    def size(self) -> int:
        """The bytes that are kept."""
        return sum(seen.size for _, seen in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def _drop_old(self) -> None:
        last = self.clock() - self.seconds
        while self._kept and next(iter(self._kept.values()))[0] < last:
            self._kept.popitem(last=False)
