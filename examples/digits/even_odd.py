"""Digit scenes with two classes in the place of ten, even and odd: new classes for a detector that knows digits."""

from typing import Any

from torch.utils.data import Dataset

from detr_hf.data import DigitScenes


class EvenOdd(Dataset):
    """The first `length` scenes of a split, each object `even` or `odd`."""

    id2label = {0: "even", 1: "odd"}  # noqa: RUF012

    def __init__(self, split: str, length: int):
        self.scenes = DigitScenes(split, length)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        objects = scene["objects"]
        return {**scene, "objects": {**objects, "category": [label % 2 for label in objects["category"]]}}
