"""Pascal VOC: corners that count from one, and XML that is refused."""

from pathlib import Path

import pytest

from detr_hf.data import load_detection_dataset
from detr_hf.errors import AnnotationError

from .. import layouts


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path: Path):
    root = layouts.write_voc(tmp_path)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>60</ymax></bndbox>"
    size = "<size><width>60</width><height>60</height></size>"
    text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
    (root / "Annotations" / "train_2.xml").write_text(text)
    assert load_detection_dataset(root)["train"][2]["objects"]["bbox"] == [[0.0, 0.0, 1.0, 60.0]]


def test_xml_entities_are_refused(tmp_path: Path):
    root = layouts.write_voc(tmp_path)
    bomb = '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotation><filename>&x;</filename></annotation>'
    (root / "Annotations" / "train_0.xml").write_text(bomb)
    with pytest.raises(AnnotationError, match="entities"):
        load_detection_dataset(root)
