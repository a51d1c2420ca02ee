"""Metadata survives the way through a file, and a path is told to be an artefact or not."""

import json

import pytest

from detr_hf.export import ArtefactInfo, find_artefact
from detr_hf.export.runtimes import load_runtime

from .artefacts import info_of, small_model, small_processor, small_segmenter


@pytest.fixture(scope="module")
def info() -> ArtefactInfo:
    return info_of(small_model(), batch=2, size_hw=(64, 96))


def test_metadata_comes_back_as_it_was(info):
    assert ArtefactInfo.from_json(info.to_json(), "a.onnx") == info
    segmenter = small_segmenter()
    processor = small_processor(label_ids_to_fuse=[1, 2])
    with_masks = info_of(segmenter, processor, mask_queries=3)
    assert ArtefactInfo.from_json(with_masks.to_json(), "a.onnx") == with_masks
    assert with_masks.has_masks and with_masks.mask_queries == 3 and with_masks.label_ids_to_fuse == (1, 2)
    with pytest.raises(ValueError, match="label_ids_to_fuse has"):
        info_of(segmenter, small_processor(label_ids_to_fuse=[3]))
    assert info_of(segmenter).mask_queries is None and not info.has_masks
    assert info.id2label == {0: "cat", 1: "dog", 2: "owl"} and info.input_shape() == (2, 3, 64, 96)


def test_metadata_holds_what_preprocessing_needs(info):
    constants, written = info.preprocessing, small_processor().to_dict()
    for key in ("size", "image_mean", "image_std", "rescale_factor", "resample", "resize_rule", "do_normalize"):
        wanted = written[key]
        assert constants[key] == (list(wanted) if isinstance(wanted, tuple) else wanted)
    assert {"detr_hf", "torch", "transformers"} <= set(info.versions)
    json.dumps(constants)


def test_foreign_and_later_files_are_refused(info):
    with pytest.raises(ValueError, match=r"a\.onnx does not say .* `detr-hf export`"):
        ArtefactInfo.from_json(None, "a.onnx")
    earlier = {**json.loads(info.to_json()), "schema_version": 1}
    for name in ("has_masks", "mask_queries", "label_ids_to_fuse"):
        del earlier[name]
    assert ArtefactInfo.from_json(json.dumps(earlier), "a.onnx") == info
    later = json.dumps({**json.loads(info.to_json()), "schema_version": 99})
    with pytest.raises(ValueError, match="version 99"):
        ArtefactInfo.from_json(later, "a.onnx")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 2}', "[" * 100_000, '{"schema_version": "2"}'])
def test_damaged_metadata_is_refused_with_the_file(text):
    with pytest.raises(ValueError, match=r"a\.onnx: what it says of itself is damaged"):
        ArtefactInfo.from_json(text, "a.onnx")


@pytest.mark.parametrize(
    ("name", "package"), [("a.onnx", "onnxruntime"), ("openvino_model.xml", "openvino"), ("a.pt2", "torch")]
)
@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 cut short"], ids=["empty", "text", "cut"])
def test_a_file_that_its_runtime_cannot_read_is_named(tmp_path, name, package, content):
    pytest.importorskip(package)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name} \({len(content)} bytes\) cannot be loaded: \S.* export the model again"
    ):
        load_runtime(tmp_path / name)


def test_what_is_an_artefact(tmp_path):
    assert find_artefact("facebook/detr-resnet-50") is None and find_artefact("weights.pth") is None
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        find_artefact(tmp_path / "gone.onnx")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert find_artefact(folder) is None
    graph = folder / "openvino_model.xml"
    graph.touch()
    (folder / "openvino_model.bin").touch()
    assert find_artefact(folder) == graph and find_artefact(graph) == graph
    (folder / "model.onnx").touch()
    with pytest.raises(ValueError, match="several exported models"):
        find_artefact(folder)
    (folder / "config.json").touch()  # a checkpoint, with artefacts beside it
    assert find_artefact(folder) is None and find_artefact(folder / "model.onnx") is not None
