"""Drawings on disk: written whole, and with a mark in them by which they are told from photographs later."""

from pathlib import Path

from PIL import Image

from ..whole_files import whole_file

_EXIF_SOFTWARE_TAG = 0x0131
DRAWING_MARK = "detr_hf: a drawing"
# A file is opened to look for the mark only where its name has one of these.
DRAWING_NAMES = ("boxes", "masks", "panoptic", "semantic", "preview", "attention")


VECTOR_SUFFIXES = (".svg", ".html", ".htm")


def is_vector(path: str | Path) -> bool:
    """Whether a path's ending stands for an SVG, or an HTML page of one."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


def picture_format(path: str | Path) -> str:
    """Returns Pillow's name of the format that a path's ending stands for.

    Raises:
        ValueError: it stands for none that can be written.
    """
    Image.init()
    kind = Image.EXTENSION.get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"Cannot tell the picture format from {str(path)!r}: end it in .png, .jpg or .webp.")
    return kind


def refuse_ending(path: str | Path) -> None:
    """Raises the ValueError of `picture_format` where a path's ending stands for no file that can show results."""
    if not is_vector(path):
        try:
            picture_format(path)
        except ValueError as error:
            raise ValueError(f"{str(error).removesuffix('.')}, or .svg or .html.") from None


def save_drawing(image: Image.Image, path: str | Path) -> Path:
    """Returns `path` after writing the image there, whole and marked; the ending decides the format.

    PNG, JPEG, WebP, TIFF and AVIF hold the mark. Folders are made as needed.
    """
    kind = picture_format(path)
    mark = Image.Exif()
    mark[_EXIF_SOFTWARE_TAG] = DRAWING_MARK
    with whole_file(path) as unfinished:
        image.save(unfinished, kind, exif=mark, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    return Path(path)


def save_vector(text: str, path: str | Path) -> Path:
    """Returns `path` after writing an SVG or a page there, whole."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return Path(path)


def is_marked(path: Path) -> bool:
    """Whether a file is a drawing that this package wrote, by the mark in it."""
    if is_vector(path):
        return is_marked_svg(path)
    try:
        with Image.open(path) as image:
            return image.getexif().get(_EXIF_SOFTWARE_TAG) == DRAWING_MARK
    except Exception:  # whatever is wrong with it (Pillow raises a dozen types): it is no drawing of ours
        return False


def is_marked_svg(path: Path) -> bool:
    """Whether a file is an SVG that this package wrote, or a page of one, by the mark in it."""
    try:
        with path.open(encoding="utf-8") as opened:
            start = opened.read(2000)
    except (OSError, UnicodeDecodeError):
        return False
    return start.startswith(("<svg", "<!doctype html")) and DRAWING_MARK in start


def is_drawing(path: Path) -> bool:
    """Whether a file is such a drawing, which only one that is called as drawings are is opened for."""
    return any(word in path.stem.lower() for word in DRAWING_NAMES) and is_marked(path)
