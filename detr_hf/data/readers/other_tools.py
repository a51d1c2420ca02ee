"""Files of labelling tools that no reader here reads: told by their keys, and which export to choose instead."""

import re
from pathlib import Path

from .text import UTF16_MARKS

PROBE_BYTES = 1 << 20
COCO_KEYS = ("images", "annotations", "categories")
# Of a JSON file: what stands at its top (None: either), the keys that it has (regular expressions), what it is, and
# what to do. The first that fits counts.
TOOLS: tuple[tuple[str | None, tuple[str, ...], str, str], ...] = (
    ("[", ("result", "from_name"), "Label Studio's own JSON", "export as COCO there"),
    ("[", ("original_width", "label"), "Label Studio's JSON-MIN", "export as COCO there"),
    (
        "[",
        ("image_id", "category_id", "score"),
        "a list of predictions (COCO's result format)",
        "the annotations are needed",
    ),
    ("[", ("annotations", "coordinates"), "CreateML's JSON", "export as COCO JSON from the same tool"),
    ("[", ("labels", "box2d"), "BDD100K's (Scalabel's) JSON", "convert it with `python -m scalabel.label.to_coco`"),
    (None, (r"_via_\w+",), "VIA's project or JSON", "choose Annotation, Export Annotations (COCO format) there"),
    (None, ("vid_list", "metadata"), "a project of VIA 3", "export its annotations as COCO from VIA 3"),
    (
        None,
        ("shape_attributes",),
        "VGG's (VIA's) JSON",
        "in VIA choose Export Annotations (COCO format), in makesense COCO JSON or, for boxes, VOC XML",
    ),
    (None, ("shapes", "imagePath"), "LabelMe's JSON, one file a picture", "convert it: pip install labelme2coco"),
    (None, ("regions", "boundingBox"), "VoTT's own JSON", "choose Pascal VOC in VoTT's export settings"),
    (None, ("assets", "securityToken"), "a project of VoTT", "choose Pascal VOC in VoTT's export settings"),
    (None, ("classTitle",), "Supervisely's own JSON", "run the app `Export to COCO` there"),
    (None, ("schema_ref", "annotations"), "V7 Darwin's own JSON", "export as COCO there"),
    (None, ("items", "dm_format_version"), "Datumaro's own JSON", "convert it with `datum convert ... -f coco`"),
    (None, ("items", "media_type"), "Datumaro's own JSON", "convert it with `datum convert ... -f coco`"),
    (None, ("data_row",), "Labelbox's own JSON", "convert it to COCO"),
    (None, ("_cls", "filepath"), "FiftyOne's own JSON", "export it as fiftyone.types.COCODetectionDataset"),
)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz")
TABLE_COLUMNS = {"xmin", "ymin", "xmax", "ymax"}


def _probe(path: Path) -> str:
    """Returns the first and the last megabyte of a text file."""
    try:
        with open(path, "rb") as file:
            head = file.read(PROBE_BYTES)
            file.seek(max(path.stat().st_size - PROBE_BYTES, 0))
            tail = file.read(PROBE_BYTES)
    except OSError:
        return ""
    encoding = {UTF16_MARKS[0]: "utf-16-le", UTF16_MARKS[1]: "utf-16-be"}.get(head[:2], "utf-8")
    return head.decode(encoding, "ignore").lstrip("\ufeff") + "\n" + tail.decode(encoding, "ignore")


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file has two of COCO's lists, judged by its first and last megabyte."""
    text = _probe(path)
    found = [re.search(rf'"{key}"\s*:\s*(\[|null)', text) for key in COCO_KEYS]
    return text.lstrip()[:1] == "{" and sum(map(bool, found)) >= 2


def json_of_a_tool(path: Path) -> str | None:
    """Returns which tool's a JSON file is, and what to export instead, as a part of a sentence; None for any other."""
    text = _probe(path)
    top = text.lstrip()[:1]
    for wanted, keys, name, advice in TOOLS:
        if wanted in (None, top) and all(re.search(rf'"{key}"\s*:', text) for key in keys):
            return f"{name}, which is not read here: {advice}"
    return None


def is_archive(path: Path) -> bool:
    """Whether a file's name ends as that of an archive or a compressed file."""
    return path.suffix.lower() in ARCHIVES


def what_else(folder: Path) -> list[str]:
    """Returns sentences about files of a folder that no reader reads: another tool's JSON, tables, archives."""
    sentences = []
    for path in [*sorted(folder.glob("*.json"))[:20], *sorted(folder.glob("*/*.json"))[:20]]:
        tool = json_of_a_tool(path)
        if tool:
            sentences.append(f"{path.relative_to(folder)} is {tool}")
            break
    for path in sorted(folder.glob("*.csv"))[:20]:
        columns = {name.strip().strip('"').lower() for name in _probe(path).partition("\n")[0].split(",")}
        if columns >= TABLE_COLUMNS:
            sentences.append(
                f"{path.name} is a table of boxes, as VoTT and makesense write, which is not read here: export as "
                "Pascal VOC there"
            )
            break
    archives = [path.name for path in sorted(folder.iterdir()) if is_archive(path)]
    if archives:
        sentences.append(f"{archives[0]} is an archive: unpack it first")
    return sentences
