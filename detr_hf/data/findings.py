"""Faults of a data set: what is wrong, how bad, where; all counted, the first of each kind kept.

`CODES` is the table of everything that a reader or a check can find.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

KEPT_FINDINGS = 1000
SEVERITIES = ("error", "warning", "info")


class Code(NamedTuple):
    """A kind of finding: how bad, what it means, and what is left out of the data for it.

    `left_out` is "object", "picture", "mask", "size" or "link"; of an error it is what `on_fault="drop"` leaves out,
    which cures it. None: nothing is left out, and an error stays one.
    """

    severity: str
    means: str
    left_out: str | None = None


CODES = {
    # The data set as a whole: leaving out single objects or pictures cures none of it.
    "layout": Code("error", "it is no data set that is known, or can be read in two ways"),
    "no-images": Code("error", "a split has no picture"),
    "no-objects": Code("error", "nothing that can be learnt was found, in a split or at all"),
    "no-objects-in-test": Code("warning", "a test split has no object: nothing can be measured on it"),
    "categories-missing": Code("error", "no class is defined"),
    "category-conflict": Code("error", "an id is another class in another split"),
    "category-id-duplicate": Code("error", "an id is defined more than once"),
    "category-name-duplicate": Code("error", "two ids have one name"),
    "boxes-look-xyxy": Code("error", "the boxes look like corners"),
    "boxes-look-normalised": Code("error", "the boxes look like fractions"),
    "isthing-unknown": Code("error", "whether a class is a thing or stuff is not told, or told in two ways"),
    "image-id-duplicate": Code("error", "two entries have one image id: whose objects are whose cannot be told"),
    # Objects.
    "annotation-malformed": Code("error", "an annotation is not what one should be", "object"),
    "box-missing": Code("error", "no box", "object"),
    "box-malformed": Code("error", "the box is not four numbers", "object"),
    "box-nan": Code("error", "a NaN in the box", "object"),
    "box-infinite": Code("error", "an infinite or enormous number in the box", "object"),
    "box-negative": Code("error", "a negative width or height", "object"),
    "box-not-normalised": Code("error", "YOLO's numbers are no fractions", "object"),
    "category-missing": Code("error", "no class", "object"),
    "category-malformed": Code("error", "the class id is no integer or text", "object"),
    "category-unknown": Code("error", "a class id that is not defined", "object"),
    "iscrowd-malformed": Code("error", "iscrowd is not 0 or 1", "object"),
    "image-unknown": Code("error", "the annotation is for a picture that is not listed", "object"),
    "label-malformed": Code("error", "a line of a label file cannot be read", "object"),
    "segment-id-duplicate": Code("error", "two segments of a picture have one id", "object"),
    "mask-malformed": Code("error", "the segmentation cannot be used", "mask"),
    "mask-missing": Code("error", "an object has no segmentation, and a mask is needed for each", "mask"),
    "segment-id-zero": Code("error", "a segment has the id 0, which says that a pixel is of no segment", "object"),
    "mask-unused": Code("warning", "the segmentation cannot be used; masks are not read", "mask"),
    "masks-not-read": Code("info", "there are segmentations, and masks are not read"),
    "mask-empty": Code(
        "warning", "the mask has no pixel in the picture: the object is left out of training with masks"
    ),
    "mask-cut": Code("warning", "the mask reaches out of its picture"),
    "mask-box-differs": Code("warning", "box and mask are not of one place"),
    "box-empty": Code("warning", "the box has no area", "object"),
    "box-outside": Code("warning", "the box lies outside of its picture", "object"),
    "box-tiny": Code("warning", "the box is below a pixel: it is left out of training"),
    "box-cut": Code("warning", "the box reaches out of its picture"),
    "objects-crowd": Code("warning", "many objects are marked as crowds, which are left out of training"),
    "object-duplicate": Code("warning", "an object occurs twice"),
    "annotation-id-missing": Code("warning", "an annotation has no id; it gets a number"),
    "annotation-id-duplicate": Code("warning", "an annotation id occurs more than once; objects are numbered anew"),
    "segment-absent": Code("warning", "a segment has no pixel", "object"),
    "segment-unlisted": Code("warning", "a segment is not listed"),
    "stuff-repeated": Code("warning", "a stuff class has several segments in a picture"),
    # Pictures.
    "image-malformed": Code("error", "an entry is no picture's", "picture"),
    "file-name-unsafe": Code("error", "a file name leaves the data set's folder", "picture"),
    "file-name-other-picture": Code("error", "a repaired name leads to a picture of another size", "picture"),
    "file-name-ambiguous": Code("error", "two names would mean one file; the first keeps it", "picture"),
    "file-name-repaired": Code("warning", "a file name is not taken as it stands"),
    "path-repaired": Code("warning", "`path` of a data.yaml is not taken as it stands"),
    "entry-repaired": Code("warning", "an entry of a data.yaml is not taken as it stands"),
    "entry-shortened": Code("info", "an entry of a data.yaml points one folder too high, as Roboflow's do"),
    "list-prefix": Code("info", "the names of a list have folders before them that are not there"),
    "value-repaired": Code("warning", 'a value of the wrong kind with one meaning: "3" for 3'),
    "filename-stale": Code("warning", "an XML file names another picture than the one that has its name"),
    "image-entry-repeated": Code("warning", "the same entry of a picture stands twice"),
    "image-repeated": Code("warning", "a list names a picture twice; it is read once"),
    "image-size-unknown": Code("info", "no size is recorded; the picture's own is taken"),
    "image-kind-unread": Code("warning", "a picture of a kind that is not read"),
    "label-ambiguous": Code("error", "two label files could be the picture's and differ", "picture"),
    "label-name-repaired": Code("warning", "a label file is called otherwise than its picture"),
    "label-shared": Code("warning", "a label file serves two pictures"),
    "label-missing": Code("info", "a picture without a label file: background"),
    "label-unclaimed": Code("warning", "a label file of no picture"),
    "labels-beside-pictures": Code("warning", "labels lie beside pictures, and a labels folder is there"),
    "label-number-extra": Code("warning", "a line has a number more: a confidence or a track, which is passed over"),
    "key-points-not-read": Code("info", "key points behind boxes are passed over"),
    "key-points-inferred": Code("info", "key points are told from polygons by their numbers"),
    "area-from-box": Code("info", "no area is recorded; the box's is taken"),
    "category-left-out": Code("info", "a class without an object has the name of another"),
    "class-names-differ": Code("warning", "two files name the classes differently"),
    "annotation-file-unread": Code("info", "a JSON file that is no annotation file of this task"),
    "split-missing": Code("warning", "a split of a data.yaml is not there"),
    "splits-overlap": Code("warning", "two splits have pictures in common"),
    "annotation-missing": Code("error", "a list names a picture that has no annotation file", "picture"),
    "annotation-unlisted": Code("warning", "an annotation file is in no list and is not read"),
    "split-left-out": Code("warning", "a list whose pictures have no annotations makes no split"),
    "image-unlisted": Code("info", "a picture that no annotation names is not read"),
    "class-names-alike": Code("warning", "names of classes differ in case, blanks or Unicode form only"),
    "class-name-null": Code("warning", "a data.yaml names a class null, which is read as that text"),
    "file-listed-twice": Code("error", "a file is listed twice in a split; the first is kept", "picture"),
    "image-missing": Code("error", "no such file, or no picture in the row", "picture"),
    "image-unreadable": Code("error", "a picture cannot be decoded", "picture"),
    "image-size-mismatch": Code("error", "a picture is not of the size that its annotations are for", "picture"),
    "image-size-malformed": Code("error", "the recorded size is none; the picture's own is taken", "size"),
    "image-annotated-twice": Code("error", "a picture has two panoptic annotations; the first is kept", "object"),
    "objects-uneven": Code("error", "there are not as many boxes as classes", "picture"),
    "label-file-unreadable": Code("error", "a label file cannot be read", "picture"),
    "xml-malformed": Code("error", "an XML file cannot be read", "picture"),
    "panoptic-missing": Code("error", "no segment picture", "picture"),
    "panoptic-unreadable": Code("error", "a segment picture cannot be decoded", "picture"),
    "panoptic-size-mismatch": Code("error", "a segment picture is not of its picture's size", "picture"),
    "image-id-repeated": Code("warning", "an image id occurs more than once; pictures are numbered anew"),
    "image-duplicate": Code("warning", "a picture occurs twice in a split"),
    "image-in-two-splits": Code("warning", "a picture occurs in two splits"),
    "exif-ambiguous": Code("warning", "whether the boxes are on the turned picture cannot be told"),
    "exif-ignored": Code("warning", "the boxes are on the stored picture, which viewers turn"),
    "exif-turned": Code("info", "the boxes are on the turned picture"),
    # What training would suffer from or should know.
    "validation-share": Code("info", "pictures were set aside for validation"),
    "images-without-objects": Code("info", "pictures without objects"),
    "category-ids-remapped": Code("info", "class ids become 0 to K-1"),
    "class-without-objects": Code("info", "classes without an object"),
    "class-not-in-training": Code("warning", "a class has objects, and none to train on"),
    "class-imbalance": Code("info", "a class has many times the objects of another"),
    "more-objects-than-queries": Code("warning", "a picture has more objects than the model has queries"),
    "objects-small": Code("warning", "many objects are below a cell of the feature map"),
}


def left_out_for(code: str) -> str | None:
    """Returns what is left out for a finding, see `Code`; None also for a code that is not in the table."""
    return CODES[code].left_out if code in CODES else None


@dataclass(frozen=True)
class Finding:
    """One fault: what (`code`), how bad (`severity`), where, and a sentence."""

    code: str
    severity: str  # "error" | "warning" | "info"
    message: str
    split: str | None = None
    file_name: str | None = None
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    def __str__(self) -> str:
        place = [self.split] if self.split else []
        if self.file_name is not None:
            place.append(f"{self.file_name}")
        elif self.image_id is not None:
            place.append(f"image {self.image_id}")
        if self.annotation_id is not None:
            place.append(f"annotation {self.annotation_id}")
        return f"{', '.join(place)}: {self.message}" if place else self.message


class FindingLog:
    """Findings by code: all are counted, the first `KEPT_FINDINGS` of each code are kept."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.severities: dict[str, str] = {}
        self.kept: dict[str, list[Finding]] = {}

    def add(self, code: str, severity: str, message: str, **where: Any) -> None:
        """Counts a fault; `where` are the place fields of `Finding`."""
        self.counts[code] = self.counts.get(code, 0) + 1
        self._worsen(code, severity)
        kept = self.kept.setdefault(code, [])
        if len(kept) < KEPT_FINDINGS:
            kept.append(Finding(code, severity, message, **where))

    def _worsen(self, code: str, severity: str) -> None:
        """Notes the severity of a code: the worst of its findings."""
        self.severities[code] = min(severity, self.severities.get(code, severity), key=SEVERITIES.index)

    def extend(self, other: "FindingLog") -> None:
        """Takes over all findings of `other`."""
        for code, count in other.counts.items():
            self.counts[code] = self.counts.get(code, 0) + count
            self._worsen(code, other.severities[code])
            kept = self.kept.setdefault(code, [])
            kept.extend(other.kept[code][: KEPT_FINDINGS - len(kept)])

    def take_over(self, earlier: "FindingLog") -> None:
        """Takes over the findings of `earlier` whose codes are not here: what was found again is one finding."""
        for finding in [finding for finding in earlier if finding.code not in self.counts]:
            kept = self.kept.setdefault(finding.code, [])
            kept.append(finding)
        for code in self.kept.keys() - self.counts.keys():
            self.counts[code], self.severities[code] = earlier.counts[code], earlier.severities[code]

    def tolerate(self) -> None:
        """Makes the errors that leaving out cures warnings, which say so."""
        for code in self.of("error"):
            left_out = left_out_for(code)
            if left_out is not None:
                self.severities[code] = "warning"
                said = f" (left out: the {left_out})"
                self.kept[code] = [
                    replace(finding, severity="warning", message=finding.message + said) for finding in self.kept[code]
                ]

    def of(self, severity: str) -> dict[str, int]:
        """Returns the counts by code of one severity."""
        return {code: count for code, count in self.counts.items() if self.severities[code] == severity}

    def lines(self, severity: str, limit: int = 3) -> list[str]:
        """Returns for each code of a severity one line with its count, then the first few offenders."""
        lines = []
        for code, count in self.of(severity).items():
            lines.append(f"{code} ({count}):")
            lines.extend(f"  {finding}" for finding in self.kept[code][:limit])
            if count > limit:
                lines.append(f"  ... and {count - limit} more")
        return lines

    def __iter__(self) -> Iterator[Finding]:
        for kept in self.kept.values():
            yield from kept

    def __len__(self) -> int:
        return sum(self.counts.values())
