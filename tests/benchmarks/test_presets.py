"""What presets cost is measured on every one of them."""

import pytest

from benchmarks.presets import compare_presets
from detr_hf.model.presets_detr import PRESETS


@pytest.mark.slow
def test_every_preset_is_measured_beside_the_papers_detr():
    record = compare_presets("cpu", 1, (96, 128), 2, "resnet18")
    assert record.keys() == {"environment", "settings", *PRESETS}
    for name in PRESETS:
        assert min(record[name]["parameters"], record[name]["operations"], record[name]["weights_and_peak_memory"]) > 0
    assert record["precise"]["time_over_detr"]["median"] > 0
