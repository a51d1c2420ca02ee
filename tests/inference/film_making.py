"""Films made by a script, and one drawn in a process that can be killed: `python -m tests.inference.film_making FRAMES
FILM DRAWN` makes the first unless it is there and draws the second, and prints frames and memory (MiB) as it goes.
"""

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

RATE, SAMPLES = 25, 48000


def moving_square(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame (H, W, 3): upper half red, lower half blue, and a white square that goes round."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = (200, 40, 40), (40, 60, 200)
    x = number % (width - 8)
    pixels[height // 4 : height // 4 + 8, x : x + 8] = 255
    return pixels


def noise(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame that takes many bytes."""
    return np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def make_film(
    path: Path,
    frames: int = 30,
    size: tuple[int, int] = (64, 48),
    *,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    sound: str | None = "aac",
    options: dict[str, str] | None = None,
    picture: Callable[[int, tuple[int, int]], np.ndarray] = moving_square,
) -> Path:
    """Writes a film of 25 frames a second, or with `times` in milliseconds, and a tone; of 0 frames a tone alone."""
    import av

    faststart = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options or faststart) as file:
        quickly = {"preset": "ultrafast"} if codec == "libx264" else {}
        video = file.add_stream(codec, rate=RATE, options=quickly) if frames else None
        tone = file.add_stream(sound, rate=SAMPLES, layout="mono") if sound else None
        if video is not None:
            video.width, video.height, video.pix_fmt = *size, "yuv420p" if codec != "ffv1" else "yuv444p"
            video.codec_context.time_base = Fraction(1, RATE if times is None else 1000)
        for number in range(frames or RATE):
            if video is not None:
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                frame.pts, frame.time_base = number if times is None else times[number], video.codec_context.time_base
                file.mux(video.encode(frame))
            if tone is not None:
                count = SAMPLES // RATE
                wave = np.sin(np.arange(number * count, (number + 1) * count) * 0.06) * 9000
                heard = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
                heard.sample_rate, heard.pts = SAMPLES, number * count
                file.mux(tone.encode(heard))
        for stream in (video, tone):
            if stream is not None:
                file.mux(stream.encode())
    return path


def seen_in(path: Path) -> dict[str, Any]:
    """Returns what a film says of itself and what is in it, after reading it to its end."""
    import av

    with av.open(str(path)) as file:
        video = next(iter(file.streams.video), None)
        sound = [stream for stream in file.streams.audio]
        seen = {"length": file.duration / av.time_base, "mark": file.metadata.get("comment")}
        seen["sound"] = [stream.codec_context.name for stream in sound]
        if video is not None:
            seen |= {
                "codec": video.codec_context.name,
                "rate": float(video.average_rate),
                "size": (video.width, video.height),
            }
        packets = {stream.index: [] for stream in file.streams}
        seen["times"], seen["first"] = [], None
        for packet in file.demux(*file.streams.video, *sound):
            if packet.stream.type == "video":
                for frame in packet.decode():
                    seen["times"].append(round(frame.time, 3))
                    seen["first"] = frame.to_ndarray(format="rgb24") if seen["first"] is None else seen["first"]
            elif packet.size:
                packets[packet.stream.index].append(bytes(packet))
        seen["heard"] = [packets[stream.index] for stream in sound]
    return seen


def memory() -> int:
    """Returns the resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


if __name__ == "__main__":
    from detr_hf import draw_film

    from .stand_in import StandIn

    frames, film, drawn = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    if not film.exists():
        make_film(film, frames, (640, 360))

    def say(count: int) -> None:
        if count % 100 == 0:
            print(count, memory(), flush=True)

    result = draw_film(StandIn(), film, drawn, threshold=0.0, on_progress=say)
    print(result.frames, memory(), result.faults, result.changes, flush=True)
