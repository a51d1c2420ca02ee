"""What an evaluation says of a model with masks: their AP and panoptic quality, and losses; one process or two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from detr_hf import DETRForSegmentation, DETRImageProcessor
from detr_hf.data.preparing.transform import prepare
from detr_hf.training.trainer import DETRTrainer

from ..conftest import tiny_config
from ..evaluation.test_masks import NAMES, SIZES, THINGS, answers, row, streamed
from .pairs import join_pair, run_pair
from .scenes import arguments

PROCESSOR = DETRImageProcessor(do_resize=False)
COUNT = 7  # over two processes in batches of 3: 3 and 3, then 1 and a filler


class Rows(list):
    """Rows of a data set that knows things from stuff."""

    is_thing = THINGS


def rows(numbers=range(COUNT), one_size: bool = False) -> Rows:
    made = []
    for number in numbers:
        one = row(number * len(SIZES) if one_size else number)
        pixels = np.random.default_rng(number).integers(0, 255, (one["height"], one["width"], 3), dtype=np.uint8)
        made.append({**one, "image": Image.fromarray(pixels)})
    return Rows(made)


def segmenter() -> DETRForSegmentation:
    torch.manual_seed(0)
    small = {"backbone": "test_resnet", "enc_layers": 1, "dec_layers": 2, "hidden_dim": 16, "dim_feedforward": 32}
    return DETRForSegmentation(tiny_config(**small, num_queries=9, dropout=0.0, id2label=NAMES)).eval()


class Answers(DETRForSegmentation):
    """A model that finds what `answers` says of each picture, at the size of the padded input."""

    asked = None

    def forward(self, pixel_values, pixel_mask=None, labels=None, mask_score_threshold=None, **options):
        outputs = super().forward(
            pixel_values, pixel_mask, labels, mask_score_threshold=mask_score_threshold, **options
        )
        type(self).asked = mask_score_threshold
        height, width = pixel_values.shape[-2:]
        found = [answers([row(int(label["image_id"]))]) for label in labels]
        for name in ("logits", "pred_boxes", "pred_masks"):
            outputs[name] = torch.cat([one[name] for one in found])
        outputs["pred_masks"] = outputs["pred_masks"][..., :height, :width]
        return outputs


def knowing() -> DETRForSegmentation:
    model = segmenter()
    model.__class__ = Answers
    return model


def trainer(folder, model, evaluation, **changes) -> DETRTrainer:
    training = prepare(rows(range(2)), PROCESSOR, masks=True)
    options = arguments(folder, **changes)
    return DETRTrainer(model, options, train_dataset=training, eval_dataset=evaluation, processing_class=PROCESSOR)


def test_masks_and_segments_are_measured_on_the_data_itself(tmp_path):
    run = trainer(tmp_path, knowing(), prepare(rows(range(8)), PROCESSOR, masks=True))
    metrics = run.evaluate()
    expected = streamed([list(range(8))])
    masks, quality = expected.compute_masks(), expected.compute_panoptic()
    assert run.last_mask_evaluation.summary == pytest.approx(masks.summary, nan_ok=True)
    assert run.last_panoptic_evaluation == quality and 0.1 < quality.summary["PQ"] < 0.95
    assert metrics["eval_mask_ap"] == pytest.approx(masks.summary["AP"]) and metrics["eval_mask_ap"] > 0.1
    for name in ("PQ", "SQ", "RQ", "PQ_th", "SQ_st"):
        assert metrics[f"eval_{name.lower()}"] == quality.summary[name]
    assert 0 < Answers.asked < 0.1, "masks of other queries are not made"
    results = run.predict(prepare(rows(range(8)), PROCESSOR, masks=True)).predictions
    assert sum("segmentation" in one for one in results) > 8


def test_losses_of_masks_are_those_of_one_batch(tmp_path):
    """Whatever the batch size; pictures of one size, as padding moves outputs."""
    model, data = segmenter(), prepare(rows(one_size=True), PROCESSOR, masks=True)
    found = []
    for size in (COUNT, 1, 3):
        metrics = trainer(tmp_path, model, data, per_device_eval_batch_size=size).evaluate()
        found.append({name: value for name, value in metrics.items() if "loss" in name})
        assert found[-1] == pytest.approx(found[0], rel=1e-4), size
    with torch.no_grad():
        run = trainer(tmp_path, model, data)
        outputs = model(**run.data_collator([data[index] for index in range(COUNT)]))
    assert found[0]["eval_loss"] == pytest.approx(float(outputs.loss), rel=1e-5)
    for name in ("loss_mask", "loss_dice", "loss_ce"):
        assert found[0][f"eval_{name}"] == pytest.approx(float(outputs.loss_dict[name]), rel=1e-5)


@pytest.mark.parametrize("metric", ["PQ", pytest.param("day_mask_AP", marks=pytest.mark.slow)])
def test_the_best_checkpoint_is_the_one_with_the_best_segments(metric, tmp_path):
    sets = {name: prepare(rows(numbers), PROCESSOR, masks=True) for name, numbers in (("day", [0]), ("night", [1]))}
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "metric_for_best_model": metric}
    run = trainer(tmp_path, segmenter(), sets, **options)
    run.train()
    name = f"eval_{metric.lower().removeprefix('eval_')}"
    values = [entry[name] for entry in run.state.log_history if "eval_runtime" in entry]
    assert len(values) == 2 and run.state.best_metric == max(values) and run.args.greater_is_better


def test_a_quality_that_will_not_be_measured_is_refused_before_training(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "PQ"}
    plain = prepare(list(rows(range(2))), PROCESSOR, masks=True)
    with pytest.raises(ValueError, match=r"is 'PQ', and .* mask_ap.*does not tell things from stuff"):
        trainer(tmp_path, segmenter(), plain, **options)
    run = trainer(tmp_path, segmenter(), plain)
    assert "eval_pq" not in run.evaluate() and run.last_panoptic_evaluation is None
    assert run.last_mask_evaluation.num_images == 2


# --- two processes


def measured(folder: Path) -> dict:
    """The metrics of what is known, and the losses of a model as it is."""
    known = trainer(folder, knowing(), prepare(rows(), PROCESSOR, masks=True))
    metrics = {name: value for name, value in known.evaluate().items() if "_ap" in name or "q" in name}
    assert known.last_panoptic_evaluation.num_images == COUNT
    losses = trainer(folder, segmenter(), prepare(rows(one_size=True), PROCESSOR, masks=True)).evaluate()
    return metrics | {name: value for name, value in losses.items() if "loss" in name}


def run_process(rank: int, port: int, folder: str) -> None:
    join_pair(rank, port)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(measured(Path(folder) / "pair")))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path):
    """Losses of masks, AP and quality, with a picture that fills up the last batch."""
    run_pair(run_process, str(tmp_path))
    single = measured(tmp_path / "single")
    assert single["eval_mask_ap"] > 0.1 and single["eval_pq"] > 0.1
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {"eval_pq_st", "eval_mask_ap50", "eval_loss_mask", "eval_loss_dice", "eval_loss"} <= found.keys()
        for name, value in single.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
