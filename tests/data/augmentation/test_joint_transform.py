"""Images and labels that change together: flips, rotations, crops and scaling against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

v2 = pytest.importorskip("torchvision.transforms.v2")

from branchnet.data import JointTransform, LabelForm  # noqa: E402
from branchnet.errors import DataError  # noqa: E402

FORMS = {
    "classes": LabelForm("segmentation", 5, 255),
    "depth": LabelForm("depth"),
    "disparity": LabelForm("map"),
    "normals": LabelForm("normals", 3),
    "offsets": LabelForm("offsets", 2),
    "boxes": LabelForm("boxes"),
    "scene": LabelForm("classification", 3),
    "edges": LabelForm("edges"),
}


def sample(height: int, width: int, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, height, width, generator=generator)

    labels = {
        "classes": torch.randint(0, 5, (height, width), generator=generator),
        "depth": draw(1).exp(),
        "disparity": draw(1),
        "normals": torch.nn.functional.normalize(draw(3), dim=0),
        "offsets": draw(2),
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 5.0]]),
        "scene": torch.tensor(2),
        "edges": None,
    }
    labels["depth"][0, 0, 0] = torch.nan
    return draw(3), labels


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(
        (first[task] is None and second[task] is None)
        or torch.equal(torch.nan_to_num(first[task], -7), torch.nan_to_num(second[task], -7))
        for task in first
    )


@given(st.integers(6, 20), st.integers(6, 20), st.sampled_from(["RandomHorizontalFlip", "RandomVerticalFlip"]))
@settings(max_examples=15, deadline=None)
def test_two_flips_change_nothing(height: int, width: int, name: str) -> None:
    image, labels = sample(height, width)
    flip = JointTransform(getattr(v2, name)(1.0), FORMS)
    once, flipped = flip(image, labels)
    twice, again = flip(once, flipped)
    assert torch.equal(twice, image)
    assert equal(again, labels)
    assert not equal(flipped, labels)


def test_a_horizontal_flip_changes_the_sign_of_x() -> None:
    image, labels = sample(7, 9)
    flipped_image, found = JointTransform(v2.RandomHorizontalFlip(1.0), FORMS)(image, labels)
    signs = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    assert torch.equal(flipped_image, image.flip(-1))
    assert torch.equal(found["normals"], labels["normals"].flip(-1) * signs)
    assert torch.equal(found["offsets"], labels["offsets"].flip(-1) * signs[:2])
    assert torch.equal(found["disparity"], labels["disparity"].flip(-1))
    assert found["boxes"].tolist() == [[5.0, 2.0, 8.0, 5.0]]
    assert found["scene"] is labels["scene"]
    assert type(found["classes"]) is type(flipped_image) is Tensor


def test_nothing_changes_in_what_was_given() -> None:
    image, labels = sample(7, 9)
    before = image.clone(), {task: None if label is None else label.clone() for task, label in labels.items()}
    JointTransform(v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ColorJitter(0.5), v2.Pad(3)]), FORMS)(image, labels)
    assert torch.equal(image, before[0])
    assert equal(labels, before[1])


def plane_depth(height: int, width: int, slope: tuple[float, float]) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return (2 + slope[0] * (columns - (width - 1) / 2) + slope[1] * (rows - (height - 1) / 2))[None]


def normals_of(depth: Tensor) -> Tensor:
    """Of a surface seen along parallel rays, from the differences of neighbouring depths."""
    down, across = torch.gradient(depth[0])
    return torch.nn.functional.normalize(torch.stack([across, down, -torch.ones_like(down)]), dim=0)


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        v2.RandomRotation((90, 90)),
        v2.RandomRotation((180, 180)),
        v2.Compose([v2.RandomRotation((-90, -90)), v2.RandomHorizontalFlip(1.0)]),
    ],
)
def test_normals_of_a_plane_are_those_of_the_changed_depth(transform: Any) -> None:
    depth = plane_depth(12, 12, (0.3, -0.1))
    labels = {"depth": depth, "normals": normals_of(depth)}
    _, found = JointTransform(transform, FORMS)(torch.zeros(3, 12, 12), labels)
    torch.testing.assert_close(found["normals"], normals_of(found["depth"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [10.0, -37.0])
def test_a_rotation_turns_normals_with_the_image(degrees: float) -> None:
    depth = plane_depth(40, 40, (0.3, -0.1))
    labels = {"depth": depth, "normals": normals_of(depth)}
    _, found = JointTransform(v2.RandomRotation((degrees, degrees)), FORMS)(torch.zeros(3, 40, 40), labels)
    middle = (slice(None), slice(14, 26), slice(14, 26))
    turn = math.radians(degrees)  # counter-clockwise as seen, with y down
    x, y = 0.3 * math.cos(turn) - 0.1 * math.sin(turn), -0.3 * math.sin(turn) - 0.1 * math.cos(turn)
    expected = normals_of(plane_depth(40, 40, (x, y)))
    torch.testing.assert_close(found["normals"][middle], expected[middle], atol=3e-3, rtol=0)
    fitted = torch.linalg.lstsq(  # the slope of the depth that was turned, which is rounded to whole pixels
        torch.stack(
            [*torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"), torch.ones(12, 12)], -1
        ).view(-1, 3),
        found["depth"][middle].reshape(-1, 1),
    ).solution[:2, 0]
    torch.testing.assert_close(fitted, torch.tensor([y, x]), atol=0.02, rtol=0)


def centre_offsets(height: int, width: int, centre: tuple[float, float]) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([centre[0] - columns, centre[1] - rows])


def test_offsets_still_point_to_their_centre() -> None:
    labels = {"offsets": centre_offsets(20, 30, (7.0, 12.0))}
    transform = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Pad(4), v2.RandomRotation((90, 90), expand=True)])
    _, found = JointTransform(transform, FORMS)(torch.zeros(3, 20, 30), labels)
    offsets = found["offsets"]
    # flipped: x = 29 - 7 = 22; padded: (26, 16) of 38 x 28; turned counter-clockwise: x = 16, y = 37 - 26
    expected = centre_offsets(38, 28, (16.0, 11.0))
    known = ~offsets.isnan()
    assert int(known.sum()) == 2 * 20 * 30
    torch.testing.assert_close(offsets[known], expected[known], atol=1e-4, rtol=0)


def test_resizing_scales_offsets_and_depth_if_asked() -> None:
    image = torch.zeros(3, 16, 16)
    labels = {"offsets": centre_offsets(16, 16, (3.0, 4.0)), "depth": torch.full((1, 16, 16), 6.0)}
    labels["normals"] = normals_of(plane_depth(16, 16, (0.5, 0.2)))
    resize = v2.Resize((32, 32))
    _, found = JointTransform(resize, FORMS)(image, labels)
    # Each pixel is doubled: offsets are those of the original pixel, twice as long.
    torch.testing.assert_close(
        found["offsets"], 2 * labels["offsets"].repeat_interleave(2, 1).repeat_interleave(2, 2), atol=0.1, rtol=0.01
    )
    assert bool((found["depth"] == 6).all())
    assert torch.equal(found["normals"], labels["normals"].repeat_interleave(2, 1).repeat_interleave(2, 2))
    _, nearer = JointTransform(resize, FORMS, depth_scales=True)(image, labels)
    torch.testing.assert_close(nearer["depth"], torch.full((1, 32, 32), 3.0), rtol=0.02, atol=0)
    assert bool((nearer["depth"] < 3.1).all())


def test_stretching_turns_no_normals() -> None:
    image, labels = sample(10, 10)
    _, found = JointTransform(v2.Resize((10, 37)), {"normals": FORMS["normals"]})(image, {"normals": labels["normals"]})
    assert bool((found["normals"][:, :, 0] == labels["normals"][:, :, 0]).all())


@pytest.mark.parametrize("fill", [0, 1, 255, {Tensor: 3}])
def test_what_is_filled_in_has_no_label(fill: Any) -> None:
    image, labels = sample(6, 8)
    _, found = JointTransform(v2.Pad(2, fill=0 if isinstance(fill, dict) else fill), FORMS)(image, labels)
    inside = torch.zeros(10, 12, dtype=torch.bool)
    inside[2:8, 2:10] = True
    assert bool((found["classes"][~inside] == 255).all())
    assert torch.equal(found["classes"][inside], labels["classes"].flatten())
    assert bool(found["depth"][0][~inside].isnan().all())
    assert bool((found["normals"][:, ~inside] == 0).all())
    assert bool(found["offsets"][:, ~inside].isnan().all())


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_labels_never_mix(seed: int) -> None:
    """Any composed change leaves each pixel the classes, depth and normal of one and the same pixel."""
    image, labels = sample(15, 18, seed)
    number = torch.arange(15 * 18.0).view(1, 15, 18)
    labels = {"depth": number + 1, "classes": (number[0] % 5).long(), "edges": (number % 2)}
    transform = v2.Compose([v2.RandomAffine(40, (0.1, 0.1), (0.7, 1.4), 10), v2.RandomResizedCrop((12, 13))])
    torch.manual_seed(seed)
    _, found = JointTransform(transform, FORMS)(image, labels)
    known = ~found["depth"][0].isnan()
    came_from = found["depth"][0][known] - 1
    assert torch.equal(came_from, came_from.round())
    assert torch.equal(found["classes"][known], (came_from % 5).long())
    assert torch.equal(found["edges"][0][known], came_from % 2)
    assert bool((found["classes"][~known] == 255).all())


def test_colours_change_in_the_image_alone() -> None:
    image, labels = sample(6, 8)
    found_image, found = JointTransform(v2.Compose([v2.ColorJitter(0.9), v2.Normalize([0.5] * 3, [0.1] * 3)]), FORMS)(
        image.sigmoid(), labels
    )
    assert not torch.equal(found_image, image.sigmoid())
    assert equal(found, labels)


def test_normals_cannot_follow_an_elastic_transform() -> None:
    image, labels = sample(40, 40)
    torch.manual_seed(0)
    elastic = v2.ElasticTransform(alpha=200.0, sigma=3.0)
    without = {task: label for task, label in labels.items() if task in ("classes", "depth")}
    assert JointTransform(elastic, FORMS)(image, without)[1]["classes"].shape == (40, 40)
    with pytest.raises(DataError, match=r"a transform is not affine.* as the normals 'normals' must follow it"):
        JointTransform(elastic, FORMS)(image, {"normals": labels["normals"]})


def test_labels_of_another_size_and_unknown_tasks_are_refused() -> None:
    image, labels = sample(6, 8)
    with pytest.raises(DataError, match=r"the label 'depth' has shape \(1, 3, 4\) and the image \(3, 6, 8\)"):
        JointTransform(v2.Identity(), FORMS)(image, {"depth": torch.zeros(1, 3, 4)})
    with pytest.raises(DataError, match="the label 'sound' is unknown; expected one of classes"):
        JointTransform(v2.Identity(), FORMS)(image, {"sound": labels["depth"]})
