import itertools

import numpy as np
import pytest

from branchnet.reporting.plots.palette import BLACK, COLOURS, PAPER, SHARED, WHITE, class_palette, task_marks, text_on

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour: str, deficiency: str) -> np.ndarray:
    seen = np.clip(np.asarray(DEFICIENCIES[deficiency]) @ linear(colour), 0, 1)
    xyz = SRGB_TO_XYZ @ seen / SRGB_TO_XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first: str, second: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_stay_apart_for_colour_blind_readers(deficiency):
    for first, second in itertools.combinations((*COLOURS, SHARED), 2):
        assert np.linalg.norm(lab(first, deficiency) - lab(second, deficiency)) > 15, (first, second)


@pytest.mark.parametrize("paper", [PAPER, "#0d1117"])
def test_colours_are_seen_on_light_and_dark_paper(paper):
    for colour in (*COLOURS, SHARED):
        assert contrast(colour, paper) > 1.75, colour


def test_forty_tasks_have_forty_distinct_marks():
    assert len(set(task_marks([f"t{i}" for i in range(40)]).values())) == 40


def test_class_palette_has_distinct_colours():
    palette = class_palette(40)
    assert palette.shape == (40, 3)
    assert len({tuple(row) for row in palette}) == 40
    assert class_palette(1).shape == (1, 3)


@pytest.mark.parametrize("grey", np.linspace(0, 1, 11))
def test_text_is_black_or_white_whichever_contrasts_more(grey):
    level = round(255 * grey)
    background = f"#{level:02x}{level:02x}{level:02x}"
    chosen = text_on([level / 255] * 3)
    other = {BLACK: WHITE, WHITE: BLACK}[chosen]
    assert contrast(chosen, background) >= contrast(other, background)
