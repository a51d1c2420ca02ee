"""A film with what was found drawn on each of its frames: H.264 in an MP4, which browsers play.

Rate, times (also uneven ones) and length stay, and so does the sound: copied as it is where an MP4 may hold it, as AAC
otherwise. Frames are upright, and a side of an odd number of pixels gets one more, since H.264 takes even ones. Only a
few batches of frames are held at a time.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ..visualize.saving import DRAWING_MARK
from ..whole_files import refuse_overwriting, whole_file
from .batching import Failure, read_ahead
from .results import BestBelow
from .sources.video import decoded_frames, require_pyav, upright_pixels

if TYPE_CHECKING:
    from .detector import Detector

logger = logging.getLogger(__name__)

SOUND_OF_MP4 = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")
QUALITY = {"crf": "20", "preset": "veryfast"}
BT709 = 1  # matrix, primaries and transfer: what players take the colours of a film for that says nothing
USUAL_RATE = Fraction(25)
FAULTS_TOLD = 5


class Moment(NamedTuple):
    """When a frame is shown: `pts` and `duration` (0: unknown) in units of `time_base` seconds."""

    pts: int | None
    duration: int
    time_base: Fraction


@dataclass
class DrawnFilm:
    """What became of a film: the file, its `frames`, and in how many of them a class was found.

    `best_below` is what came nearest in the frames in which nothing was found.
    `faults` say what is missing and where, each once; `changes` what is other than in the source.
    """

    path: Path
    frames: int = 0
    frames_with: Counter[str] = field(default_factory=Counter)
    best_below: BestBelow | None = None
    faults: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def draw_film(
    detector: "Detector",
    film: str | Path,
    path: str | Path,
    *,
    threshold: float = 0.7,
    batch_size: int = 8,
    font: str | Path | None = None,
    limit: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> DrawnFilm:
    """Writes a film with what is found in each frame drawn on it, whole or not at all; returns what became of it.

    Of a damaged film the frames that are whole are drawn, and `faults` say where it broke.

    Args:
        detector: a `Detector`, whose task says what is looked for.
        film: the file.
        path: the MP4 to be; folders are made as needed.
        threshold: objects with a higher score are drawn.
        batch_size: how many frames go through the model together, at most.
        font: the file of the font for names.
        limit: how many frames to take, from the first; all by default.
        on_progress: is called with the number of frames that are written.

    Raises:
        ValueError: not one frame can be read, or `path` is the film.
        OSError: it cannot be written, as on a full disk.
    """
    require_pyav()
    film, path = Path(film), Path(path)
    refuse_overwriting({"path": path}, [film])
    drawn = DrawnFilm(path)
    with whole_file(path) as unfinished, closing(_FilmWriter(unfinished, film, drawn)) as writer:
        for moment, image, names in _drawn_frames(detector, film, drawn, threshold, batch_size, font, limit):
            writer.write(image, moment)
            drawn.frames += 1
            drawn.frames_with.update(names)
            if on_progress is not None:
                on_progress(drawn.frames)
        if not drawn.frames:
            raise ValueError("; ".join(drawn.faults) or f"{film} has no frame.")
        writer.finish(cut=limit is not None)
    return drawn


def _drawn_frames(
    detector: "Detector", film: Path, drawn: DrawnFilm, threshold: float, batch_size: int, font: Any, limit: int | None
) -> Iterator[tuple[Moment, Image.Image, set[str]]]:
    """Yields each frame that is whole with what was found drawn on it, and the names of its classes."""
    moments: deque[Moment] = deque()
    faults = _Faults(drawn.faults)

    def frames() -> Iterator[tuple[Moment, np.ndarray] | Exception]:
        for frame in decoded_frames(film):
            if isinstance(frame, Exception):
                yield frame
            else:
                base = frame.time_base or Fraction(1)  # without one it has no pts either
                moment = Moment(frame.pts, getattr(frame, "duration", None) or 0, base)
                yield moment, upright_pixels(frame)

    def images() -> Iterator[np.ndarray]:
        last = None
        for frame in ahead:
            if isinstance(frame, Exception):
                faults.add(str(frame), last)
                continue
            last, pixels = frame
            moments.append(last)
            yield pixels

    with closing(read_ahead(frames(), 2 * batch_size)) as ahead:
        outcomes = detector.outcomes(islice(images(), limit), threshold, batch_size, unchanging=True)
        for outcome in outcomes:
            moment = moments.popleft()
            if isinstance(outcome, Failure):
                faults.add(str(outcome.error), moment)
                yield moment, Image.fromarray(outcome.source), set()
            else:
                nearest = [best for best in (drawn.best_below, outcome.best_below) if best is not None]
                drawn.best_below = max(nearest, key=lambda best: best.score, default=None)
                yield moment, outcome.draw(font, what=detector.task), set(_names(outcome))
    faults.close()


def _names(outcome: Any) -> Iterator[str]:
    for map_ in (outcome.panoptic, outcome.semantic):
        if map_ is not None:
            yield from (one["name"] for one in map_.segments_info)
    yield from outcome.names


class _Faults:
    """Sentences about faults, each with the time of the frame before it; the first few, then how many more."""

    def __init__(self, sentences: list[str]):
        self.sentences = sentences
        self._more = 0

    def add(self, what: str, after: Moment | None) -> None:
        """Adds one, said of what comes after a frame, or of the beginning."""
        where = ""
        if after is not None and after.pts is not None and after.time_base is not None:
            where = f" (after {float(after.pts * after.time_base):.2f} s)"
        if len(self.sentences) < FAULTS_TOLD:
            self.sentences.append(what + where)
        else:
            self._more += 1

    def close(self) -> None:
        """Says how many are left out."""
        if self._more:
            self.sentences.append(f"and {self._more} faults more")


class _FilmWriter:
    """An MP4 that is being written: frames in, and beside them the sound of the film that they are of."""

    def __init__(self, path: Path, film: Path, drawn: DrawnFilm):
        self.path = path
        self.film = film
        self.drawn = drawn
        self._file: Any = None
        self._video: Any = None
        self._sound: _Sound | None = None
        self._size = (0, 0)
        self._shift = Fraction(0)
        self._last = -1
        self._step = 1
        self._untimely = 0
        self._resized = 0

    def write(self, image: Image.Image, moment: Moment) -> None:
        """Adds a frame, and the sound up to it."""
        with self._named():
            self._write(image, moment)

    def _write(self, image: Image.Image, moment: Moment) -> None:
        import av

        if self._file is None:
            self._begin(image, moment)
        if image.size != self._size:
            self._resized += 1
            image = image.resize(self._size)
        pixels = np.asarray(image)
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        frame = av.VideoFrame.from_ndarray(np.pad(pixels, (*odd, (0, 0)), mode="edge"), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = self._pts(moment), self._video.codec_context.time_base
        if moment.duration and hasattr(frame, "duration"):
            frame.duration = moment.duration
        self._sound_until(frame.pts * frame.time_base)
        self._file.mux(self._video.encode(frame))

    def finish(self, cut: bool) -> None:
        """Writes what the encoder holds, the sound to its end (or to the last frame's, `cut`), and the index."""
        end = (self._last + self._step) * self._video.codec_context.time_base
        with self._named():
            self._file.mux(self._video.encode())
            self._sound_until(end if cut else None)
            if self._sound is not None:
                self._file.mux(self._sound.rest())
            file, self._file = self._file, None
            file.close()
        if self._untimely:
            self.drawn.changes.append(f"{self._untimely} frames had no time of their own and follow the one before")
        if self._resized:
            self.drawn.changes.append(f"{self._resized} frames of another size were brought to that of the first")

    def close(self) -> None:
        """Lets go of the files; what is not finished is nothing that plays."""
        if self._sound is not None:
            self._sound.close()
        if self._file is not None:
            with suppress(OSError, ValueError):  # the disk is full, which is being said
                self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names the film to be in an error of FFmpeg, which names the file that is not finished, or none."""
        import av

        try:
            yield
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self.drawn.path)) from error

    def _begin(self, image: Image.Image, moment: Moment) -> None:
        import av

        self._size = image.size
        width, height = (side + side % 2 for side in image.size)
        if (width, height) != image.size:
            self.drawn.changes.append(
                f"{image.width}x{image.height} pixels are {width}x{height}: H.264 takes even sides"
            )
        self._file = av.open(str(self.path), "w", format="mp4", options={"movflags": "+faststart"})
        self._file.metadata["comment"] = DRAWING_MARK
        with av.open(str(self.film)) as source:
            stream = source.streams.video[0]
            self._shift = Fraction(max(source.start_time or 0, 0), av.time_base)
            rate = stream.average_rate or stream.guessed_rate or USUAL_RATE
            lain = stream.width == image.width
            aspect = stream.sample_aspect_ratio
        self._video = self._file.add_stream("libx264", rate=rate, options=QUALITY)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = width, height, "yuv420p", moment.time_base
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709
        if aspect:  # of a pixel
            context.sample_aspect_ratio = aspect if lain else 1 / aspect
        self._step = max(round(1 / (rate * moment.time_base)), 1)
        self._sound = _Sound(self.film, self._file, self._shift, self.drawn)

    def _pts(self, moment: Moment) -> int:
        """Returns the time of a frame in the source's units, behind that of the last one."""
        base = self._video.codec_context.time_base
        pts = None if moment.pts is None else round((moment.pts * moment.time_base - self._shift) / base)
        if pts is None or pts <= self._last:
            self._untimely += self._last >= 0 or pts is None
            pts = max(self._last + (self._step if pts is None else 1), 0)
        self._last = pts
        self._step = moment.duration or self._step
        return pts

    def _sound_until(self, seconds: Fraction | None) -> None:
        if self._sound is not None:
            for packets in self._sound.until(seconds):
                self._file.mux(packets)


class _Sound:
    """All that is to be heard in a film, on its way to another: read beside the frames, and never ahead of them."""

    def __init__(self, film: Path, file: Any, shift: Fraction, drawn: DrawnFilm):
        import av

        self._source = av.open(str(film))
        self._shift = shift
        self._drawn = drawn
        self._targets: dict[int, Any] = {}
        self._encoded: set[int] = set()
        for stream in self._source.streams.audio:
            codec = stream.codec_context.name.removesuffix("float")  # a decoder's name: mp3float
            if codec in SOUND_OF_MP4:
                self._targets[stream.index] = file.add_stream_from_template(stream)
            else:
                self._targets[stream.index] = file.add_stream("aac", rate=stream.rate, layout=stream.layout.name)
                self._encoded.add(stream.index)
                drawn.changes.append(f"the sound, {stream.codec_context.name}, is AAC")
        kinds = Counter(one.type for one in self._source.streams if one.type != "audio")
        kinds["video"] -= 1
        if left_out := [f"{count} of {kind}" for kind, count in kinds.items() if count > 0]:
            drawn.changes.append(f"left out of the other tracks: {', '.join(left_out)}")
        self._packets = self._read()
        self._next: tuple[Fraction, Any] | None = None

    def until(self, seconds: Fraction | None) -> Iterator[Any]:
        """Yields the packets that begin before a time, or all that are left."""
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            if self._next is None or (seconds is not None and self._next[0] >= seconds):
                return
            (_, packets), self._next = self._next, None
            yield packets

    def rest(self) -> list[Any]:
        """Returns what encoders still hold."""
        return [packet for index in self._encoded for packet in self._targets[index].encode()]

    def close(self) -> None:
        """Lets go of the film."""
        self._source.close()

    def _read(self) -> Iterator[tuple[Fraction, Any]]:
        import av

        at, damaged, why = Fraction(0), None, ""
        try:
            for packet in self._source.demux(self._source.streams.audio) if self._targets else ():
                if packet.dts is None:  # the last, which is empty
                    continue
                at = packet.dts * packet.time_base - self._shift
                try:
                    if packet.is_corrupt:
                        raise ValueError("a packet is not whole")
                    packets = self._for_target(packet)
                except (av.error.FFmpegError, ValueError) as error:
                    damaged, why = (at, str(error)) if damaged is None else (damaged, why)
                    continue
                yield at, packets
        except (av.error.FFmpegError, OSError) as error:
            damaged, why = at, str(error)
        if damaged is not None:
            self._drawn.faults.append(f"the sound is damaged at {float(damaged):.2f} s: {why}")

    def _for_target(self, packet: Any) -> Any:
        index = packet.stream.index
        target = self._targets[index]
        if index not in self._encoded:
            shift = round(self._shift / packet.time_base)
            packet.stream = target
            packet.pts, packet.dts = (None if one is None else one - shift for one in (packet.pts, packet.dts))
            return packet
        encoded = []
        for frame in packet.decode():
            frame.pts = None if frame.pts is None else frame.pts - round(self._shift / frame.time_base)
            encoded += target.encode(frame)
        return encoded
