"""Fine-tuning surgery: what still means something is kept, the rest is drawn anew, and it is said."""

import logging
import math

import pytest
import torch

from detr_hf import DETRConfig, DETRForObjectDetection, DETRModel
from detr_hf.checkpoints.surgery import adapt_heads
from tests.checkpoints.foreign import assert_same_tensors, narrow_model, original_args, save_original, their_detr
from tests.conftest import tiny_config

OLD = {0: "N/A", 1: "Cat", 2: "dog", 3: "owl"}


def weights(num_classes: int = 4, num_queries: int = 7, width: int = 32) -> dict[str, torch.Tensor]:
    """Returns the tensors that surgery looks at, and one that it must leave alone."""
    generator = torch.Generator().manual_seed(0)
    return {
        "class_embed.weight": torch.randn(num_classes + 1, width, generator=generator),
        "class_embed.bias": torch.randn(num_classes + 1, generator=generator),
        "query_embed.weight": 3 * torch.randn(num_queries, width, generator=generator),
        "input_proj.bias": torch.randn(width, generator=generator),
    }


def adapt(old: dict, new: dict, tensors: dict | None = None):
    return adapt_heads(weights() if tensors is None else tensors, tiny_config(**old), tiny_config(**new))


def test_nothing_changes_where_nothing_differs():
    tensors = weights()
    adapted, said = adapt({"id2label": OLD}, {"id2label": dict(OLD), "dropout": 0.0}, tensors)
    assert said == []
    assert_same_tensors(adapted, tensors)


def test_rows_follow_their_names():
    tensors = weights()
    adapted, said = adapt({"id2label": OLD}, {"id2label": {0: "DOG", 1: "yak", 2: " cat "}}, tensors)
    assert_same_tensors({"": adapted["input_proj.bias"]}, {"": tensors["input_proj.bias"]})
    for name in ("class_embed.weight", "class_embed.bias"):
        assert len(adapted[name]) == 4
        for new, old in ((0, 2), (2, 1), (-1, -1)):  # dog, cat, no-object
            assert torch.equal(adapted[name][new], tensors[name][old])
    drawn = adapted["class_embed.weight"][1]
    assert not any(torch.equal(drawn, row) for row in tensors["class_embed.weight"])
    assert drawn.abs().max() <= 1 / math.sqrt(32)
    assert drawn.std() > 0.05
    (sentence,) = said
    assert all(
        part in sentence
        for part in ("3 classes instead of 4", "2 of them (dog, cat)", "no-object", "1 rows are random")
    )


def test_the_given_weights_are_not_touched():
    tensors = weights()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    adapt({"id2label": OLD}, {"id2label": {0: "yak"}, "num_queries": 20}, tensors)
    assert_same_tensors(tensors, before)


def test_unnamed_classes_are_never_taken_for_the_same():
    tensors = weights()
    adapted, said = adapt({"id2label": None, "num_labels": 4}, {"id2label": None, "num_labels": 3}, tensors)
    assert torch.equal(adapted["class_embed.weight"][-1], tensors["class_embed.weight"][-1])
    assert not torch.equal(adapted["class_embed.weight"][0], tensors["class_embed.weight"][0])
    assert "none of them was known" in said[0]
    gaps, _ = adapt({"id2label": OLD}, {"id2label": {0: "N/A", 1: "cat"}}, tensors)
    assert not torch.equal(gaps["class_embed.weight"][0], tensors["class_embed.weight"][0])


def test_naming_unnamed_classes_keeps_the_head():
    tensors = weights()
    adapted, said = adapt({"id2label": None, "num_labels": 4}, {"id2label": OLD}, tensors)
    assert said == []
    assert_same_tensors(adapted, tensors)


def test_same_classes_in_another_order():
    tensors = weights()
    swapped = {0: "owl", 1: "dog", 2: "cat", 3: "bee"}
    adapted, _ = adapt({"id2label": {0: "cat", 1: "dog", 2: "owl", 3: "bee"}}, {"id2label": swapped}, tensors)
    assert torch.equal(adapted["class_embed.bias"], tensors["class_embed.bias"][[2, 1, 0, 3, 4]])


@pytest.mark.parametrize("num_queries", [1, 3])
def test_fewer_queries_are_the_first(num_queries):
    tensors = weights()
    adapted, said = adapt({"id2label": OLD}, {"id2label": OLD, "num_queries": num_queries}, tensors)
    assert torch.equal(adapted["query_embed.weight"], tensors["query_embed.weight"][:num_queries])
    assert f"from 7 to {num_queries}" in said[0]


@pytest.mark.parametrize("num_queries", [8, 14, 1000])
def test_more_queries_are_noisy_copies_after_the_old(num_queries):
    tensors = weights()
    queries = tensors["query_embed.weight"]
    adapted, said = adapt({"id2label": OLD}, {"id2label": OLD, "num_queries": num_queries}, tensors)
    new = adapted["query_embed.weight"]
    assert new.shape == (num_queries, 32)
    assert torch.equal(new[:7], queries)
    noise = new[7:] - queries[torch.arange(7, num_queries) % 7]
    assert noise.std().item() == pytest.approx(0.1 * queries.std().item(), rel=0.4 if num_queries < 100 else 0.05)
    assert len(new.unique(dim=0)) == num_queries
    assert f"from 7 to {num_queries}" in said[0]


def test_the_seed_decides():
    def drawn(seed):
        torch.manual_seed(seed)
        return adapt({"id2label": OLD}, {"id2label": {0: "yak"}, "num_queries": 20})[0]

    assert_same_tensors(drawn(1), drawn(1))
    for name in ("class_embed.weight", "query_embed.weight"):
        assert not torch.equal(drawn(1)[name], drawn(2)[name])


def test_dtype_is_kept():
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights().items()}
    adapted, _ = adapt({"id2label": OLD}, {"id2label": {0: "yak"}, "num_queries": 20}, tensors)
    assert {tensor.dtype for tensor in adapted.values()} == {torch.bfloat16}


def test_base_models_have_no_class_head():
    tensors = {name: tensor for name, tensor in weights().items() if "class" not in name}
    adapted, said = adapt({"id2label": OLD}, {"id2label": {0: "yak"}}, tensors)
    assert said == []
    assert_same_tensors(adapted, tensors)


NEW = {0: "owl", 1: "yak"}


@pytest.mark.parametrize("kind", ["own", "hub", "original"])
def test_from_pretrained_operates(tmp_path, kind, caplog):
    """The same surgery for every kind of checkpoint, the rest of the weights bit-equal."""
    if kind == "hub":
        their_detr().save_pretrained(tmp_path / "x")
        path = tmp_path / "x"
    elif kind == "own":
        narrow_model().save_pretrained(tmp_path / "x")
        path = tmp_path / "x"
    else:
        model = narrow_model()
        path = save_original(model, tmp_path / "x.pth", original_args(model.config))
    before = DETRForObjectDetection.from_pretrained(path).state_dict()
    with caplog.at_level(logging.WARNING, "detr_hf"):
        model = DETRForObjectDetection.from_pretrained(path, id2label=NEW, num_queries=9, dropout=0.3)
    assert "The class head is new" in caplog.text and "num_queries goes from 7 to 9" in caplog.text
    after = model.state_dict()
    changed = {
        name
        for name in before
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed == {"class_embed.weight", "class_embed.bias", "query_embed.weight"}
    assert torch.equal(after["class_embed.weight"][-1], before["class_embed.weight"][-1])
    assert torch.equal(after["query_embed.weight"][:7], before["query_embed.weight"])
    assert model.config.id2label == NEW
    assert model.config.label2id == {"owl": 0, "yak": 1}
    assert (model.config.num_queries, model.config.dropout) == (9, 0.3)
    if kind != "original":  # names are known there, LABEL_i is not a name
        assert torch.equal(after["class_embed.bias"][0], before["class_embed.bias"][2])
    model.save_pretrained(tmp_path / "saved")
    assert_same_tensors(DETRForObjectDetection.from_pretrained(tmp_path / "saved").state_dict(), after)


@pytest.mark.parametrize(
    "given",
    [{"id2label": NEW, "label2id": {"owl": 0, "yak": 1}}, {"label2id": {"owl": 0, "yak": 1}}, {"num_labels": 2}],
    ids=["both", "label2id", "num_labels"],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_every_way_to_name_classes(tmp_path, given, foreign):
    (their_detr() if foreign else narrow_model()).save_pretrained(tmp_path)
    model = DETRForObjectDetection.from_pretrained(tmp_path, **given)
    assert model.class_embed.out_features == 3
    expected = {0: "LABEL_0", 1: "LABEL_1"} if "num_labels" in given else NEW
    assert model.config.id2label == expected


def test_a_given_config_decides(tmp_path):
    narrow_model().save_pretrained(tmp_path)
    config = DETRConfig.from_pretrained(tmp_path)
    config.num_queries = 3
    model = DETRForObjectDetection.from_pretrained(tmp_path, config=config)
    assert model.query_embed.num_embeddings == 3
    before = DETRForObjectDetection.from_pretrained(tmp_path)
    assert torch.equal(model.query_embed.weight, before.query_embed.weight[:3])


def test_a_config_of_another_kind_is_refused(tmp_path):
    theirs = their_detr()
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a DETRConfig"):
        DETRForObjectDetection.from_pretrained(tmp_path, config=theirs.config)


def test_the_base_model_takes_other_queries(tmp_path):
    narrow_model().save_pretrained(tmp_path)
    assert DETRModel.from_pretrained(tmp_path, num_queries=4).query_embed.num_embeddings == 4


def test_own_checkpoints_that_fit_take_the_ordinary_road(tmp_path):
    from detr_hf.checkpoints.loading import prepare_loading

    narrow_model().save_pretrained(tmp_path)
    arguments = {"num_queries": 7, "dropout": 0.2}
    assert prepare_loading(tmp_path, None, arguments) == (tmp_path, None, None)
    assert arguments == {"num_queries": 7, "dropout": 0.2}


def test_arguments_that_are_not_ours_still_reach_transformers(tmp_path):
    their_detr().save_pretrained(tmp_path)
    model = DETRForObjectDetection.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", output_attentions=True, output_hidden_states=True
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.output_attentions and model.config.output_hidden_states
