"""Artefacts give what the model gives, for any batch, size and mask, and a bad one is not kept."""

import copy
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from detr_hf import DETRForSegmentation
from detr_hf.export import check_parity, export_model, exporting as exporting_module, load_runtime
from detr_hf.export.artefact import SUFFIX_OF
from detr_hf.export.exporting import PACKAGES_OF
from detr_hf.export.parity import smooth_images
from detr_hf.export.writers import only_of_masks

from ..model.test_box_queries_detr import box_model
from .artefacts import ModelRuntime, info_of, other_cases, small_model, small_processor


@pytest.mark.processor
def test_onnx_gives_what_the_model_gives(exported_model, onnx_artefact):
    parity = check_parity(exported_model, load_runtime(onnx_artefact), other_cases())
    assert parity.cases == 6 and parity.of["boxes_cxcywh_norm"].largest < 1e-5


def test_onnx_is_one_file_with_named_inputs_and_metadata(onnx_artefact):
    import onnxruntime

    assert [path.name for path in onnx_artefact.parent.iterdir()] == ["small.onnx"]
    session = onnxruntime.InferenceSession(str(onnx_artefact))
    assert [value.name for value in session.get_inputs()] == ["pixel_values", "pixel_mask"]
    assert [value.name for value in session.get_outputs()] == ["logits", "pred_boxes"]
    written = json.loads(session.get_modelmeta().custom_metadata_map["detr_hf"])
    assert written["id2label"] == {"0": "cat", "1": "dog", "2": "owl"} and written["format"] == "onnx"
    assert "onnxruntime" in written["versions"]


def test_outputs_are_told_by_name_whatever_their_order(exported_model, onnx_artefact, tmp_path):
    import onnx

    graph = onnx.load(onnx_artefact)
    turned = [graph.graph.output[1], graph.graph.output[0]]
    del graph.graph.output[:]
    graph.graph.output.extend(turned)
    onnx.save(graph, tmp_path / "turned.onnx")
    check_parity(exported_model, load_runtime(tmp_path / "turned.onnx"), other_cases()[:1])


def test_the_exported_model_is_left_as_it_was(exported_model, onnx_artefact):
    assert "forward" not in vars(exported_model) and not exported_model.training
    assert exported_model.dtype == torch.float32


def test_inputs_that_do_not_fit_are_refused(onnx_artefact):
    runtime = load_runtime(onnx_artefact)
    good = np.zeros((1, 3, 64, 64), np.float32)
    for bad in (good[0], good[:, :1], good.astype(np.float64)):
        with pytest.raises(ValueError, match=r"takes float32 of shape \(B, 3, H, W\)"):
            runtime(bad)
    with pytest.raises(ValueError, match="pixel_mask has shape"):
        runtime(good, np.ones((1, 32, 64), bool))


def test_unknown_devices_are_refused(onnx_artefact):
    with pytest.raises(ValueError, match="device='tpu'"):
        load_runtime(onnx_artefact, "tpu")


def test_a_foreign_onnx_file_is_refused(onnx_artefact, tmp_path):
    import onnx

    graph = onnx.load(onnx_artefact)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="was not made by `detr-hf export`"):
        load_runtime(tmp_path / "foreign.onnx")


@pytest.fixture
def quick_writer(monkeypatch):
    """Exports write a text and run the model itself, so what is around tracing can be tested in no time."""
    model = small_model()

    def write(copied, info, path, calibration):
        path.write_text(info.to_json())
        return path

    monkeypatch.setitem(exporting_module.WRITERS, "onnx", write)
    monkeypatch.setattr(exporting_module, "_require", lambda to, dtype: None)
    monkeypatch.setattr(exporting_module, "load_runtime", lambda path: ModelRuntime(model, info_of(model)))
    return model


def test_a_bad_artefact_is_deleted_and_the_old_one_stays(quick_writer, tmp_path, monkeypatch):
    output = tmp_path / "model.onnx"
    path, _ = export_model(quick_writer, small_processor(), output)
    assert path == output and output.is_file()
    before = output.read_text()
    bad = ModelRuntime(quick_writer, info_of(quick_writer), noise=0.1)
    monkeypatch.setattr(exporting_module, "load_runtime", lambda path: bad)
    with pytest.raises(ValueError, match="differs from the model"):
        export_model(quick_writer, small_processor(), tmp_path / "new.onnx")
    with pytest.raises(ValueError, match="differs from the model"):
        export_model(quick_writer, small_processor(), output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"] and output.read_text() == before


def dies_after(count: int, work) -> bool:
    """Whether a child process that does the work was ended, as by kill -9, after so many changes of the folder."""
    child = os.fork()
    if child == 0:
        done = 0

        def stepping(step):
            def call(*arguments, **options):
                nonlocal done
                if done == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return step(*arguments, **options)

            return call

        os.replace, os.unlink, exporting_module.exchange = map(
            stepping, (os.replace, os.unlink, exporting_module.exchange)
        )
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("names", [["openvino_model.xml", "openvino_model.bin"], ["m.pte", "m.json"]])
def test_a_killed_export_of_two_files_is_never_a_mixture(names, can_exchange, tmp_path, monkeypatch):
    output = tmp_path / "out" / ("m.pte" if "m.pte" in names else "m")
    inside = (lambda root: root / "out") if "m.pte" in names else (lambda root: root / "out" / "m")

    def write(root, text):
        for name in names:
            inside(root).mkdir(parents=True, exist_ok=True)
            (inside(root) / name).write_text(text)

    if not can_exchange:
        monkeypatch.setattr(exporting_module, "exchange", lambda one, other: False)
    steps, killed = 0, True
    while killed:
        shutil.rmtree(tmp_path)
        write(tmp_path, "old")
        write(tmp_path / "scratch", "new")
        made = tmp_path / "scratch" / "out"
        killed = dies_after(steps, lambda made=made: exporting_module.put_in_place(made, output))
        found = {path.name: path.read_text() for path in inside(tmp_path).glob("*")}
        loads = names[0] in found and ("m.json" in found or "m.pte" not in names)
        assert not loads or found in ({name: "old" for name in names}, {name: "new" for name in names}), (steps, found)
        assert loads or "m.pte" in names or not can_exchange, (steps, found)
        steps += 1
    assert steps > 1 and set(found.values()) == {"new"}


def test_nothing_is_overwritten_unasked(quick_writer, tmp_path):
    output = tmp_path / "model.onnx"
    output.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite"):
        export_model(quick_writer, small_processor(), output)
    assert output.read_text() == "mine"
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").touch()
    with pytest.raises(FileExistsError, match="more than an OpenVINO model"):
        export_model(quick_writer, small_processor(), folder, "openvino", overwrite=True)
    assert (folder / "a.jpg").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "tflite"}, "no export to 'tflite'"),
        ({"output": "model.pt2"}, "one file that ends in .onnx"),
        ({"output": "model.onnx", "to": "openvino"}, "a folder"),
        ({"dtype": "bfloat16"}, "onnx artefacts come in float32, float16"),
        ({"dtype": "int8", "output": "folder", "to": "openvino"}, "int8 needs pictures"),
    ],
)
def test_wrong_arguments_say_what_to_do(changes, message, tmp_path):
    arguments = {"output": "model.onnx", "to": "onnx", **changes}
    output = tmp_path / arguments.pop("output")
    with pytest.raises(ValueError, match=re.escape(message)):
        export_model(small_model(), small_processor(), output, **arguments)
    assert not list(tmp_path.iterdir())


def test_masks_that_are_not_there_are_refused(segmenter, exported_model, tmp_path):
    for model, count, message in (
        (segmenter, 8, r"mask_queries=8 \(--mask-queries\) must be from 1 to 7"),
        (segmenter, 0, "must be from 1 to 7"),
        (exported_model, 3, "is for a model with masks, and this is a detector"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, small_processor(), tmp_path / "model.onnx", mask_queries=count)
    exported_model.save_pretrained(tmp_path / "detector")
    untrained = DETRForSegmentation.from_pretrained(tmp_path / "detector")
    with pytest.raises(ValueError, match="detector is a detector: its mask head is new here"):
        export_model(untrained, small_processor(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["detector"]


def test_a_half_precision_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be float32"):
        export_model(small_model().bfloat16(), small_processor(), tmp_path / "model.onnx")


@pytest.mark.slow
def test_torch_export_is_read_without_the_model_code(exported_model, tmp_path):
    path, parity = export_model(exported_model, small_processor(), tmp_path / "small.pt2", "torch-export")
    runtime = load_runtime(path)
    assert runtime.info.format == "torch-export" and parity.of["boxes_cxcywh_norm"].largest < 1e-5
    check_parity(exported_model, runtime, other_cases())


@pytest.mark.processor
@pytest.mark.slow
def test_openvino_gives_what_the_model_gives(exported_model, tmp_path):
    pytest.importorskip("openvino")
    path, parity = export_model(exported_model, small_processor(), tmp_path / "small", "openvino")
    assert path == tmp_path / "small" / "openvino_model.xml" and parity.of["boxes_cxcywh_norm"].largest < 1e-5
    runtime = load_runtime(path)
    assert runtime.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert runtime.info.id2label == exported_model.config.id2label
    check_parity(exported_model, runtime, other_cases())


@pytest.mark.processor
@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch-export"])
def test_box_queries_of_every_format_are_the_models_whatever_their_order(to, tmp_path):
    path, parity = export_model(box_model(), small_processor(), tmp_path / f"model{SUFFIX_OF[to]}", to)
    assert load_runtime(path).info.format == to
    assert parity.of["boxes_cxcywh_norm"].largest < 1e-4
    assert parity.of["logits"].largest < 8 * 1e-4  # this model's class heads are eight times as large as new ones


@pytest.mark.slow
def test_openvino_computes_no_length_in_floating_point(exported_model, tmp_path):
    """In bfloat16 799 is 800, and a picture of 800 pixels gets a row of cells too many."""
    openvino = pytest.importorskip("openvino")
    path, _ = export_model(exported_model, small_processor(), tmp_path / "small", "openvino", dtype="bfloat16")
    kinds = [node.get_type_name() for node in openvino.Core().read_model(path).get_ordered_ops()]
    assert "Divide" in kinds and "Floor" not in kinds


@pytest.mark.processor
@pytest.mark.slow
def test_openvino_int8_is_calibrated_and_says_so(tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    calibration = list(smooth_images(np.random.default_rng(1), (8, 3, 64, 96)))
    model = small_model(blocks=(1, 2, 1, 1))
    path, parity = export_model(
        model, small_processor(), tmp_path / "small", "openvino", dtype="int8", calibration=calibration
    )
    assert load_runtime(path).info.dtype == "int8" and 0 < parity.of["logits"].mean_seen < 5e-2
    quantizers = [
        node for node in openvino.Core().read_model(path).get_ordered_ops() if node.get_type_name() == "FakeQuantize"
    ]
    assert not any("Add" in readers_of(node.input_value(0)) for node in quantizers)
    assert any("Add" in readers_of(node.output(0)) for node in quantizers)  # a shortcut, in int8 as well


def readers_of(value) -> set[str]:
    """Returns the kinds of nodes that read this output of an OpenVINO graph."""
    return {reader.get_node().get_type_name() for reader in value.get_target_inputs()}


def the_mask_head_is_not_rounded(path) -> None:
    """Asserts that what masks alone come of is not in int8, and that other convolutions are."""
    import openvino

    graph = openvino.Core().read_model(path)
    kind_of = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ordered_ops()}
    kinds_of_masks = [kind_of[name] for name in only_of_masks(graph)]
    assert "FakeQuantize" in kind_of.values() and "FakeQuantize" not in kinds_of_masks
    assert kinds_of_masks.count("Convolution") >= 13  # adapters, what queries share and what they do not


@pytest.mark.slow
def test_a_traced_model_whose_mask_head_is_not_found_is_refused():
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as operators

    pixels = operators.parameter([1, 3, 4, 4], np.float32, name="pixel_values")
    outputs = {name: operators.relu(pixels).output(0) for name in ("logits", "pred_masks")}
    for name, output in outputs.items():
        output.set_names({name})
    with pytest.raises(ValueError, match=r"mask head was not found .* come of \['Relu', 'Result'\].*dtype='bfloat16'"):
        only_of_masks(openvino.Model(list(outputs.values()), [pixels]))


WITH_MASKS = [
    ("openvino", {}),
    ("openvino", {"dtype": "bfloat16", "mask_queries": 3}),
    ("openvino", {"dtype": "int8"}),
    ("openvino", {"dtype": "int8", "mask_queries": 3, "batch": 1, "size_hw": (64, 97), "masked": False}),
    ("torch-export", {"mask_queries": 3}),
    ("torch-export", {"dtype": "bfloat16", "mask_queries": 7}),
    ("torch-export", {"dtype": "float16", "batch": 1, "size_hw": (64, 97)}),
    ("onnx", {"dtype": "float16"}),
    ("onnx", {"batch": 2, "size_hw": (64, 97), "mask_queries": 3}),
    ("onnx", {"batch": 1, "size_hw": (64, 97), "masked": False}),
]


@pytest.mark.processor
@pytest.mark.slow
@pytest.mark.parametrize(("to", "options"), WITH_MASKS)
def test_masks_of_every_format_are_the_models(segmenter, tmp_path, to, options):
    """On batches, odd sizes and padding that the export does not check itself; float32 to 1e-3 in the logits."""
    in_int8 = options.get("dtype") == "int8"
    for package in (*PACKAGES_OF[to], *(["nncf"] if in_int8 else [])):
        pytest.importorskip(package)
    output = tmp_path / f"masks{SUFFIX_OF[to]}"
    segmenter = copy.deepcopy(segmenter)
    if in_int8:  # scores that were made to differ show its rounding in the backbone tenfold
        segmenter.class_embed.weight.data.mul_(0.3)
    model = copy.deepcopy(segmenter)
    model.config.mask_score_threshold = 0.9  # a pipeline's, of which an artefact knows nothing
    pictures = smooth_images(np.random.default_rng(1), (8, 3, 64, 96)) if in_int8 else ()
    path, _ = export_model(model, small_processor(), output, to, calibration=pictures, **options)
    if in_int8:
        the_mask_head_is_not_rounded(path)
    runtime = load_runtime(path)
    if to == "openvino" and "batch" in options:
        assert runtime.compiled.input("pixel_values").get_partial_shape() == [1, 3, 64, 97]
    shape = options.get("batch"), options.get("size_hw")
    cases = [case for case in other_cases(*shape) if options.get("masked", True) or case.pixel_mask is None]
    parity = check_parity(segmenter, runtime, cases)
    assert parity.of["masks"].largest < 1e-3 or "dtype" in options
    found = runtime(cases[0].pixel_values)
    count = options.get("mask_queries")
    assert runtime.info.mask_queries == count and found.masks.shape[1] == (count or 7)
    assert (found.mask_queries is None) == (count is None)


@pytest.mark.slow
def test_onnx_with_masks_names_its_outputs(segmenter, onnx_artefact_with_masks):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_artefact_with_masks))
    assert [value.name for value in session.get_outputs()] == ["logits", "pred_boxes", "pred_masks", "mask_queries"]
    parity = check_parity(segmenter, load_runtime(onnx_artefact_with_masks), other_cases())
    assert parity.of["masks"].largest < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_fixed_shapes(exported_model, tmp_path, masked):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path, parity = export_model(
        exported_model, small_processor(), tmp_path / "fixed.onnx", batch=2, size_hw=(64, 96), masked=masked
    )
    runtime = load_runtime(path)
    assert runtime.info.input_shape() == (2, 3, 64, 96) and parity.cases == (2 if masked else 1)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 64, 96\)"):
        runtime(np.zeros((1, 3, 64, 96), np.float32))
    padded = np.ones((2, 64, 96), bool)
    padded[0, 40:] = False
    pixel_values = np.zeros((2, 3, 64, 96), np.float32)
    if masked:
        assert np.isfinite(runtime(pixel_values, padded).logits).all()
    else:
        with pytest.raises(ValueError, match="exported without a mask"):
            runtime(pixel_values, padded)


CANVAS = {"pad_size": {"height": 96, "width": 96}}


@pytest.mark.parametrize(
    ("processor", "changes", "message"),
    [
        (CANVAS, {"masked": False}, r"pads to \(height, width\) \(96, 96\), which needs the mask: .*--mask"),
        (CANVAS, {"size_hw": (96, 128)}, r"the fixed size is \(96, 128\)"),
    ],
)
def test_an_artefact_pads_as_the_image_processor_or_is_not_made(processor, changes, message, exported_model):
    with pytest.raises(ValueError, match=message):
        info_of(exported_model, small_processor(**processor), **changes)
    assert info_of(exported_model, small_processor(**processor), size_hw=(96, 96)).size_hw == (96, 96)
    assert (
        info_of(exported_model, small_processor(**processor, do_pad=False), **changes).preprocessing["do_pad"] is False
    )


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)  # as if it were not installed
    with pytest.raises(ImportError, match="Exporting to executorch needs executorch"):
        export_model(small_model(), small_processor(), tmp_path / "model.pte", "executorch")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ImportError, match=r"ONNX Runtime, which is not installed: pip install"):
        load_runtime(tmp_path / "model.onnx")
