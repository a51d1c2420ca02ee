"""PEFT's LoRA on the mask head: it learns alone, and base and adapter together give the same masks again."""

import pytest
import torch

from detr_hf import DETRForObjectDetection, DETRForSegmentation, DETRImageProcessor
from detr_hf.checkpoints.model_classes import load_model

from ..conftest import some_labels, tiny_segmenter

peft = pytest.importorskip("peft")

ON_MASKS = r"bbox_attention\.[qk]_linear|mask_head\.(lay\d|adapter\d|out_lay)"


@torch.no_grad()
def masks(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model.eval()(torch.randn(1, 3, 64, 96, generator=generator)).pred_masks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_over_the_shipped_detector_comes_back(tmp_path):
    base = DETRForObjectDetection.from_pretrained("detr-digits")
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["linear1"])).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is DETRForObjectDetection and len(loaded.config.id2label) == 10
    assert any("lora_A" in name for name in loaded.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what peft says of config files and tied weights
def test_a_mask_head_learns_by_lora_and_comes_back(tmp_path):
    tiny_segmenter(backbone="test_resnet").save_pretrained(tmp_path / "base")
    DETRImageProcessor().save_pretrained(tmp_path / "base")
    base = DETRForSegmentation.from_pretrained(tmp_path / "base")
    before = masks(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=ON_MASKS, init_lora_weights=True))
    assert torch.allclose(masks(model), before, atol=1e-4)  # lay1 is not split now, and an adapter begins as nothing
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 2 * (2 + 5 + 3 + 1) and all("lora_" in name for name in learning)

    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), 1e-2)
    labels = some_labels(2)
    labels[0]["masks"] = torch.zeros(2, 64, 96, dtype=torch.bool)
    labels[0]["masks"][:, 8:40, 16:64] = True
    losses = []
    for _ in range(5):
        parts = model.train()(torch.ones(1, 3, 64, 96), labels=labels).loss_dict
        losses.append((parts["loss_mask"] + parts["loss_dice"]).item())
        (parts["loss_mask"] + parts["loss_dice"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]

    after = masks(model)
    assert not torch.allclose(after, before, atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 200_000
    loaded = load_model(tmp_path / "adapter")
    assert type(loaded) is DETRForSegmentation and torch.equal(masks(loaded), after)
    again = peft.PeftModel.from_pretrained(
        DETRForSegmentation.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert torch.equal(masks(again), after)
    merged = again.merge_and_unload()
    assert type(merged) is DETRForSegmentation and torch.allclose(masks(merged), after, atol=1e-3)
