"""The frames of a video as pictures, decoded by PyAV (FFmpeg).

A frame is named `FILE#NUMBER`, counted from 0 as they are shown, and its results say `frame` and `seconds`. To go on
after a stop the video is decoded from its start again, because seeking in a video is not exact; that is far cheaper
than detection.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import install_hint
from ...visualize.saving import DRAWING_MARK, DRAWING_NAMES
from .base import Picture, Piece, SourceOptions

if TYPE_CHECKING:
    import av

FILM_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# A film is told to end early where more of its length than this is missing: the last frame's own is often unknown.
MISSING_SECONDS, MISSING_PART = 0.5, 0.02


def video_piece(path: Path, options: SourceOptions) -> Piece:
    """Returns every `every`-th frame of a video, upright.

    Raises:
        ImportError: PyAV is missing, or does not tell which side of a film is up.
    """
    av = require_pyav()
    try:
        with av.open(str(path)) as container:
            frames = container.streams.video[0].frames  # 0 where the file does not say
    except (av.error.FFmpegError, IndexError, OSError):
        frames = 0  # reading it will say what is wrong
    return Piece(str(path), -(-frames // options.every) or None, lambda start: _frames(path, options.every, start))


def require_pyav() -> Any:
    """Returns the module; an ImportError that says what to install where it is missing or too old."""
    with install_hint("Videos need PyAV 14.1 or later: pip install 'av>=14.1', or pip install 'detr-hf[video]'."):
        import av

        if not hasattr(av.VideoFrame, "rotation"):
            raise ImportError(f"PyAV {av.__version__}")
    return av


def _frames(path: Path, every: int, start: int) -> Iterator[Picture]:
    wanted = -1
    for number, frame in enumerate(decoded_frames(path)):
        if number % every and not isinstance(frame, Exception):
            continue
        wanted += 1
        if wanted < start:
            continue
        if isinstance(frame, Exception):
            yield Picture(f"{path}#{number}", frame, {"frame": number})
        else:
            seconds = None if frame.time is None else round(float(frame.time), 3)
            yield Picture(f"{path}#{number}", upright_pixels(frame), {"frame": number, "seconds": seconds})


def decoded_frames(path: Path) -> Iterator["av.VideoFrame | Exception"]:
    """Yields the frames; where a part of the file is damaged or missing, an error takes its place."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            end = 0.0
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    yield ValueError(f"{path} is damaged here: a frame is not whole")
                    continue
                try:
                    for frame in packet.decode():
                        if frame.is_corrupt:
                            yield ValueError(f"{path} is damaged here: a frame is not whole")
                            continue
                        end = max(end, frame.time or 0.0)
                        yield frame
                except av.error.FFmpegError as error:
                    yield ValueError(f"{path} is damaged here: {error}")
            length = _seconds(stream)
            if length is not None and length - end > MISSING_SECONDS + MISSING_PART * length:
                yield ValueError(f"{path} ends early: its last frame is at {end:.2f} of {length:.2f} seconds")
    except FileNotFoundError:
        yield ValueError(f"{path}: no such file")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        yield ValueError(f"{path} could be read no further: {error}")


def _seconds(stream: Any) -> float | None:
    """Returns the time at which a video stream ends as the file says, None where it does not; Matroska has a tag."""
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def is_drawn_film(path: Path) -> bool:
    """Whether a film is one that `draw_film` wrote, by the mark in it; only one that is called so is opened."""
    return any(word in path.stem.lower() for word in DRAWING_NAMES) and is_marked_film(path)


def is_marked_film(path: Path) -> bool:
    """Whether a film is one that `draw_film` wrote, whatever its name."""
    if path.suffix.lower() != ".mp4":
        return False
    try:
        import av

        with av.open(str(path)) as container:
            return container.metadata.get("comment") == DRAWING_MARK
    except Exception:  # whatever is wrong with it, or with PyAV: it is no film of ours
        return False


def upright_pixels(frame: Any) -> np.ndarray:
    """Returns the frame as (H, W, 3) RGB bytes, turned as the file says: phones write upright films lying down."""
    pixels = frame.to_ndarray(format="rgb24")  # (H, W, 3)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
