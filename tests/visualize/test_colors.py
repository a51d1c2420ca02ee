"""Colours and lines of classes: the same always, told apart by all, and good grounds for text."""

import numpy as np
import pytest

from detr_hf.visualize.colors import PALETTE, class_color, class_dashes, relative_luminance, rim_color, text_color

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009),
# severity 1, on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(colors: np.ndarray, sight: str) -> np.ndarray:
    """CIELAB (N, 3) of sRGB colours (N, 3) as someone of this sight sees them."""
    srgb = np.asarray(colors) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(SIGHTS[sight])).clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_the_simulation_is_right():
    assert np.allclose(lab([[255, 255, 255], [0, 0, 0]], "deuteranopia"), [[100, 0, 0], [0, 0, 0]], atol=0.01)
    assert np.allclose(lab([[255, 0, 0]], "normal"), [[53.24, 80.09, 67.2]], atol=0.05)  # the table value of red


@pytest.mark.parametrize("sight", SIGHTS)
def test_twelve_colours_are_told_apart_by_all(sight):
    seen = lab(PALETTE, sight)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.diag([np.inf] * 12)
    assert len(PALETTE) == 12 and distances.min() > 29


def test_later_classes_have_other_lines_than_those_of_their_colour():
    assert [class_dashes(label) for label in range(12)] == [()] * 12
    for label in range(12, 1000):
        assert class_dashes(label) != class_dashes(label - 12)
    styles = {(class_color(label), class_dashes(label)) for label in range(432)}
    assert len(styles) == 432


def test_a_class_keeps_its_color_and_neighbours_differ():
    colors = [class_color(label) for label in range(100)]
    assert colors == [class_color(label) for label in range(100)]
    assert len(set(colors)) == 100
    for label in range(99):
        assert np.abs(np.subtract(colors[label], colors[label + 1])).sum() > 80


@pytest.mark.parametrize("label", range(100))
def test_text_stands_out_from_every_class_color(label):
    color = class_color(label)
    assert contrast(color, text_color(color)) >= 4


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    light, dark = sorted((relative_luminance(a), relative_luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_rim_stands_out_from_its_line():
    for label in range(100):
        assert contrast(class_color(label), rim_color(class_color(label))) > 1.9
