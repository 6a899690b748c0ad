"""The public face of procedural scenes: forms, determinism, and labels that pixels show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.linear_model import RidgeClassifier

from branchnet import DataError
from branchnet.data import FAR, LAYOUTS, SEGMENTS, scenes
from branchnet.data.procedural.filters import corner_strength, edge_strength
from branchnet.data.procedural.layouts import N_FURNITURE, SLOTS
from branchnet.data.procedural.rendering import Surface
from branchnet.data.procedural.scene_dataset import _labels


def test_forms_and_ranges() -> None:
    made = scenes(96, size=32)
    assert len(made) == 96
    assert made.images.shape == (96, 3, 32, 32)
    assert made.images.dtype == torch.float32
    assert 0 <= made.images.min() < 0.1
    assert 0.9 < made.images.max() <= 1
    labels = made.labels
    shapes = {task: tuple(label.shape[1:]) for task, label in labels.items()}
    assert shapes == {
        "segmentation": (32, 32),
        "depth": (1, 32, 32),
        "normals": (3, 32, 32),
        "edges": (1, 32, 32),
        "keypoints": (1, 32, 32),
        "scene": (),
        "count": (1,),
    }
    assert set(labels["segmentation"].unique().tolist()) == set(range(len(SEGMENTS)))
    assert set(labels["scene"].unique().tolist()) == set(range(len(LAYOUTS)))
    assert labels["segmentation"].dtype == labels["scene"].dtype == torch.int64
    assert labels["depth"].min() > 0.5
    assert labels["depth"].max() == FAR
    for task in ("edges", "keypoints"):
        assert labels[task].min() >= 0
        assert 0.5 < labels[task].max() <= 1
    assert {1.0, 2.0, 3.0, 4.0, 5.0, 6.0} >= set(labels["count"].unique().tolist()) >= {1.0, 3.0, 5.0}


def test_a_scene_depends_on_the_seed_and_its_number_alone() -> None:
    whole, part = scenes(80, seed=3), scenes(3, seed=3, start=70)
    assert torch.equal(whole.images[70:73], part.images)
    for task, label in part.labels.items():
        assert torch.equal(whole.labels[task][70:73], label), task
    assert not torch.equal(scenes(3, seed=4, start=70).images, part.images)


def test_a_scene_is_the_same_at_every_size() -> None:
    small, large = scenes(24, size=32), scenes(24, size=96)
    assert torch.equal(small.labels["scene"], large.labels["scene"])
    # The centre of a small pixel is the centre of the middle one of 3 x 3 large ones.
    for task in ("segmentation", "depth"):
        agree = (small.labels[task] - large.labels[task][..., 1::3, 1::3]).abs() < 1e-3
        assert agree.float().mean() > 0.999


def test_global_state_is_left_alone() -> None:
    threads = torch.get_num_threads()
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    scenes(2)
    assert torch.get_num_threads() == threads
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_count_is_the_number_of_visible_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def spy(world: object, surface: Surface, clean: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = surface.solid[:40, : clean.shape[-1] ** 2].numpy()
        counted.extend(len({solid for solid in row.tolist() if solid >= N_FURNITURE}) for row in pixels)
        return _labels(world, surface, clean)  # type: ignore[arg-type]

    monkeypatch.setattr("branchnet.data.procedural.scene_dataset._labels", spy)
    made = scenes(40, size=32)
    assert made.labels["count"].flatten().tolist() == counted
    # A visible kind of object is an object: the class map never shows more kinds than were counted.
    kinds = [len(set(image.unique().tolist()) & {4, 5, 6}) for image in made.labels["segmentation"]]
    assert all(kind <= count for kind, count in zip(kinds, counted, strict=True))
    assert SLOTS.count("box") - N_FURNITURE == 2


def test_layouts_can_be_told_from_coarse_pixels() -> None:
    train, test = scenes(900, size=16), scenes(200, size=16, start=5000)
    model = RidgeClassifier(alpha=30.0).fit(train.images.flatten(1).numpy(), train.labels["scene"].numpy())
    accuracy = model.score(test.images.flatten(1).numpy(), test.labels["scene"].numpy())
    assert accuracy > 3 / len(LAYOUTS)


def test_edges_and_keypoints_agree_with_scipy() -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 20, 24), np.float32))
    window, slope = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], [-0.5, 0, 0.5]

    def smooth(values: np.ndarray) -> np.ndarray:
        rows = ndimage.correlate1d(values, window, axis=0, mode="nearest")
        return ndimage.correlate1d(rows, window, axis=1, mode="nearest")

    grey = smooth(np.tensordot([0.299, 0.587, 0.114], image[0].double().numpy(), 1))
    down, across = (ndimage.correlate1d(grey, slope, axis=axis, mode="nearest") for axis in (0, 1))
    np.testing.assert_allclose(edge_strength(image)[0, 0], np.tanh(np.hypot(across, down) / 0.08), atol=1e-5)
    mixed = smooth(across * down)
    tensor = np.moveaxis(np.array([[smooth(across**2), mixed], [mixed, smooth(down**2)]]), (0, 1), (2, 3))
    smaller = np.linalg.eigvalsh(tensor)[..., 0].clip(0)
    np.testing.assert_allclose(corner_strength(image)[0, 0], np.tanh(np.sqrt(smaller) / 0.05), atol=1e-3)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 8}, {"seed": -1}, {"start": -1}])
def test_too_small_arguments_are_named(wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(DataError, match=f"{name}={value}; expected [0-9]+ or more"):
        scenes(**({"count": 1} | wrong))  # type: ignore[arg-type]
