"""What a training starts from: whether the transformer is new, and the mean of the backbone's weights."""

import pytest
import torch

from detr_hf import DETRConfig, DETRForObjectDetection
from detr_hf.model.presets_detr import PRESETS
from detr_hf.training.starting import transformer_is_trained

from .scenes import Scenes, micro_model, trained, trainer


@pytest.mark.parametrize("name", PRESETS)
def test_a_new_model_of_any_preset_is_new(name):
    model = DETRForObjectDetection(DETRConfig.from_preset(name, backbone="test_resnet", hidden_dim=32))
    assert not transformer_is_trained(model) and transformer_is_trained(trained(model))


class Models:
    """Of one transformer each: how it came to be."""

    def new(folder):
        return micro_model()

    def new_and_saved(folder):
        micro_model().save_pretrained(folder)
        return DETRForObjectDetection.from_pretrained(folder)

    def one_step(folder):
        run = trainer(folder, max_steps=1, save_strategy="no", warmup_steps=0)
        run.train()
        return run.model

    def trained_and_saved(folder):
        trained(micro_model()).save_pretrained(folder)
        return DETRForObjectDetection.from_pretrained(folder)

    def weights_loaded_into_a_new_one(folder):
        model = micro_model()
        model.load_state_dict(trained(micro_model()).state_dict())
        return model


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("new", False),
        ("new_and_saved", False),
        ("one_step", True),
        ("trained_and_saved", True),
        ("weights_loaded_into_a_new_one", True),
    ],
)
def test_rates_go_by_the_transformers_weights_and_not_by_a_folder(how, expected, tmp_path):
    model = getattr(Models, how)(tmp_path)
    assert transformer_is_trained(model) == expected
    assert trainer(tmp_path, model, learning_rate=None).args.learning_rate == (5e-5 if expected else 1e-4)


def test_pictures_get_the_mean_of_the_backbones_weights(tmp_path, caplog):
    """In Python too; a processor with another mean is said."""
    import timm

    from detr_hf import DETRImageProcessor, DETRTrainer

    from .scenes import MICRO, arguments

    weights = tmp_path / "backbone.pt"
    torch.save(timm.create_model(MICRO["backbone"]).state_dict(), weights)
    model = micro_model(backbone_weights=str(weights))
    run = DETRTrainer(model, arguments(tmp_path), train_dataset=Scenes())
    assert set(run.processing_class.image_mean) == {0.5} == set(run.processing_class.image_std)
    assert "were trained with" not in caplog.text
    DETRTrainer(model, arguments(tmp_path), train_dataset=Scenes(), processing_class=DETRImageProcessor())
    assert "mean [0.485, 0.456, 0.406]" in caplog.text and "were trained with [0.5, 0.5, 0.5]" in caplog.text
    plain = DETRTrainer(micro_model(), arguments(tmp_path), train_dataset=Scenes())
    assert list(plain.processing_class.image_mean) == [0.485, 0.456, 0.406]
