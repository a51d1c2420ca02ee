"""The configuration refuses what cannot be meant, names the way out, and answers to transformers' names."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from detr_hf import DETRConfig

from ..conftest import tiny_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_querys": 50}, r"no argument 'num_querys'. The nearest one is 'num_queries'"),
        ({"lr": 0.1}, r"no argument 'lr'"),
        ({"hidden_dim": 100, "nheads": 8}, r"not divisible by nheads=8. The nearest valid nheads is 10"),
        ({"hidden_dim": 34, "nheads": 2}, r"divisible by 4 for sine .* nearest valid values are 32 and 36"),
        ({"hidden_dim": 33, "nheads": 3, "position_embedding": "learned"}, r"divisible by 2 for learned .* 32 and 34"),
        ({"num_queries": 0}, r"num_queries must be at least 1, but is 0"),
        ({"dec_layers": 0}, r"dec_layers must be at least 1"),
        ({"enc_layers": -1}, r"enc_layers must be at least 0"),
        ({"num_position_embeddings": 0}, r"num_position_embeddings must be at least 1"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\)"),
        ({"activation": "reluu"}, r"activation='reluu' is not known; .*Did you mean 'relu'"),
        ({"position_embedding": "sin"}, r"position_embedding='sin' is not known; .*Did you mean 'sine'"),
        ({"backbone": "timm/resnet50.a1_in1k"}, r"is not known; .*Did you mean 'resnet50\.a1_in1k'"),
        ({"backbone": "nonsense50"}, r"timm\.list_models\(\) lists them\.$"),
        ({"backbone": "resnet5O"}, r"backbone='resnet5O' is not known; .*Did you mean 'resnet50'"),
        ({"backbone_kwargs": {"out_indices": [1]}}, r"must not contain \['out_indices'\]"),
        ({"set_cost_class": 0, "set_cost_bbox": 0, "set_cost_giou": 0}, r"All matching costs are 0"),
        ({"eos_coef": float("nan")}, r"eos_coef must be a finite number"),
        ({"iou_label_power": -0.5}, r"iou_label_power must be a finite number that is not negative"),
        ({"giou_loss_coef": 10**400}, r"giou_loss_coef must be a finite number that is not negative"),
        ({"dtype": "sine"}, r"dtype='sine' is no type of torch's"),
        ({"dtype": 0.5}, r"dtype=0.5 is no type of torch's"),
        ({"torch_dtype": "0"}, r"dtype='0' is no type of torch's"),
        ({"giou_loss_coef": -1}, r"giou_loss_coef must be a finite number that is not negative"),
        ({"id2label": {}}, r"id2label"),
        ({"num_labels": 0, "id2label": None}, r"id2label is empty"),
        ({"id2label": {1: "a", 3: "b"}}, r"without gaps .* lacks \[0, 2\]"),
        (
            {"id2label": {0: "a", 1: "b"}, "num_labels": 3},
            r"num_labels=3 disagrees with id2label, which names 2 classes",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**arguments)


def test_a_value_of_another_type_is_refused_by_field():
    with pytest.raises(StrictDataclassFieldValidationError, match="'hidden_dim' expected int, got str"):
        tiny_config(hidden_dim="32")


@pytest.mark.parametrize(("alias", "name"), [("v2", "sine"), ("v3", "learned")])
def test_position_embeddings_have_the_originals_other_names(alias, name):
    assert tiny_config(position_embedding=alias).position_embedding == name


def test_transformers_names_are_understood_in_both_directions():
    config = tiny_config(
        d_model=64, encoder_layers=3, bbox_cost=2.5, auxiliary_loss=False, position_embedding_type="v3"
    )
    assert (config.hidden_dim, config.enc_layers, config.set_cost_bbox) == (64, 3, 2.5)
    assert (config.aux_loss, config.position_embedding) == (False, "learned")
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 4, 3)


def test_weights_are_floats_and_integers_are_welcome():
    assert tiny_config(set_cost_bbox=2, eos_coef=0, bbox_loss_coef=2.5).bbox_loss_coef == 2.5


def test_the_defaults_are_the_originals():
    config = DETRConfig()
    assert (config.hidden_dim, config.nheads, config.enc_layers, config.dec_layers) == (256, 8, 6, 6)
    assert (config.dim_feedforward, config.dropout, config.num_queries, config.backbone) == (
        2048,
        0.1,
        100,
        "resnet50",
    )
    assert (config.set_cost_class, config.set_cost_bbox, config.set_cost_giou) == (1, 5, 2)
    assert (config.bbox_loss_coef, config.giou_loss_coef, config.eos_coef, config.aux_loss) == (5, 2, 0.1, True)


def test_id2label_alone_decides_the_classes():
    config = tiny_config(id2label={"0": "cat", "1": "dog"})
    assert config.num_labels == 2
    assert config.label2id == {"cat": 0, "dog": 1}


def test_a_saved_configuration_comes_back(tmp_path):
    config = tiny_config(dropout=0, pre_norm=True, backbone_kwargs={"stem_type": "deep"}, position_embedding="v3")
    config.save_pretrained(tmp_path)
    assert DETRConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert DETRConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()


@pytest.mark.parametrize("labels", [{"0": "cat", "1": "dog"}, ["cat", "dog"], ("cat", "dog"), {1: "dog", 0: "cat"}])
def test_labels_have_one_normal_form(labels):
    config = tiny_config(id2label=labels)
    assert config.id2label == {0: "cat", 1: "dog"} and config.label2id == {"cat": 0, "dog": 1}


def test_names_that_are_numbers_become_text():
    assert tiny_config(id2label={0: 7, 1: 8}).id2label == {0: "7", 1: "8"}


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({0: None, 1: "dog"}, ValueError, r"no name to class \[0\]"),
        ({"cat": 0, "dog": 1}, ValueError, "label2id"),
        ({"0.5": "cat"}, ValueError, "indices"),
        (3, TypeError, "list of names"),
        ("cat", TypeError, "list of names"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        tiny_config(id2label=labels)
