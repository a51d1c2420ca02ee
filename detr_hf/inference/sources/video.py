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
from .base import Picture, Piece, SourceOptions

if TYPE_CHECKING:
    import av


def video_piece(path: Path, options: SourceOptions) -> Piece:
    """Returns every `every`-th frame of a video, upright.

    Raises:
        ImportError: PyAV is missing, or does not tell which side of a film is up.
    """
    with install_hint("Videos need PyAV 14.1 or later: pip install 'av>=14.1', or pip install 'detr-hf[video]'."):
        import av

        if not hasattr(av.VideoFrame, "rotation"):
            raise ImportError(f"PyAV {av.__version__}")
    try:
        with av.open(str(path)) as container:
            frames = container.streams.video[0].frames  # 0 where the file does not say
    except (av.error.FFmpegError, IndexError, OSError):
        frames = 0  # reading it will say what is wrong
    return Piece(str(path), -(-frames // options.every) or None, lambda start: _frames(path, options.every, start))


def _frames(path: Path, every: int, start: int) -> Iterator[Picture]:
    wanted = -1
    for number, frame in enumerate(_decoded(path)):
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


def _decoded(path: Path) -> Iterator["av.VideoFrame | Exception"]:
    """Yields the frames; where a part of the file is damaged, an error takes its place."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.FFmpegError as error:
                    yield ValueError(f"{path} is damaged here: {error}")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        yield ValueError(f"{path} could be read no further: {error}")


def upright_pixels(frame: Any) -> np.ndarray:
    """Returns the frame as (H, W, 3) RGB bytes, turned as the file says: phones write upright films lying down."""
    pixels = frame.to_ndarray(format="rgb24")  # (H, W, 3)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
