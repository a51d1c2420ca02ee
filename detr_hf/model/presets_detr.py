"""Named settings of `DETRConfig`: what is chosen together, a row each."""

from typing import Any

# "detr" is the paper's. "precise" is for small objects and boxes that fit, from an ImageNet backbone and a few hundred
# pictures: queries that are boxes, three maps, an encoder on the coarsest alone, and scores that say how well a box
# fits. What each field does is in docs/learning.md, and what of a plain DETR's checkpoint such a model takes over.
PRESETS: dict[str, dict[str, Any]] = {
    "detr": {},
    "precise": {
        "box_queries": True,
        "num_feature_levels": 3,
        "num_queries": 150,
        "enc_layers": 1,
        "dec_layers": 3,
        "dim_feedforward": 1024,
        "dropout": 0.0,
        "focal_gamma": 2.0,
        "eos_coef": 0.75,
        "iou_label_power": 1.0,
        "set_cost_class": 4.0,
        "num_denoising": 60,
    },
}
