"""Readers of public layouts on made copies: values as their documentation says, splits apart, damage named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import branchnet
from branchnet.data import NYUD, CelebA, Cityscapes, LabelledImages, PascalContext, Taskonomy
from branchnet.errors import DataError
from branchnet.training import constant_answers, constant_scores, standard_losses, standard_metrics
from tests.data.labelled import made_layouts
from tests.data.labelled.made_layouts import HEIGHT, WIDTH

ALL: list[tuple[type[LabelledImages], Callable[[Path], None]]] = [
    (Cityscapes, made_layouts.cityscapes),
    (NYUD, made_layouts.nyud),
    (PascalContext, made_layouts.pascal),
    (Taskonomy, made_layouts.taskonomy),
    (CelebA, made_layouts.celeba),
]


@pytest.mark.parametrize(("reader", "make"), ALL)
def test_every_layout_keeps_the_conventions(reader: type[LabelledImages], make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    seen: list[str] = []
    for split in reader.SPLITS:
        data = reader(tmp_path, split)
        seen += data.names
        for image, labels in (data[number] for number in range(len(data))):
            assert image.dtype == torch.float32
            assert image.shape[0] == 3
            assert 0 <= image.min() <= image.max() <= 1
            assert set(labels) == set(data.label_forms)
            for task, label in labels.items():
                form = data.label_forms[task]
                if label is None:
                    continue
                if form.kind in ("classification", "segmentation"):
                    assert label.dtype == torch.int64
                    assert label.shape == (image.shape[1:] if form.pixelwise else ())
                    assert bool(((label < form.channels) | (label == form.ignore)).all())
                else:
                    assert label.dtype == torch.float32
                    assert label.shape == (form.channels, *image.shape[1:])
                if form.kind == "normals":
                    lengths = label.norm(dim=0)
                    assert bool((((lengths - 1).abs() < 1e-5) | (lengths == 0)).all())
    assert len(set(seen)) == len(seen), "a sample is in two splits"
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(("reader", "make"), ALL)
def test_usual_losses_and_metrics_take_the_labels(reader: type[LabelledImages], make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    data = reader(tmp_path, "train")
    losses, metrics = standard_losses(data), standard_metrics(data)
    assert set(losses) == set(metrics) == set(data.label_forms)
    _, labels = data[0]
    for task, label in labels.items():
        assert label is not None
        form = data.label_forms[task]
        shape = (1, form.channels, *label.shape[(0 if form.kind in ("classification", "segmentation") else 1) :])
        output = torch.zeros(shape, requires_grad=True)
        loss = losses[task](output, label[None])
        loss.backward()
        assert loss.shape == ()
        assert bool(loss.isfinite())
        assert output.grad is not None
        assert bool(output.grad.isfinite().all())
    scores = constant_scores(data, data, {task: metric for task, metric in metrics.items() if task != "reshading"})
    assert all(np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize(("reader", "make"), ALL)
def test_unknown_splits_and_tasks_and_folders_are_named(
    reader: type[LabelledImages], make: Any, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match="split='training'; expected one of train"):
        reader(tmp_path, "training")
    with pytest.raises(DataError, match=r"tasks \['sound'\] are unknown"):
        reader(tmp_path, "train", ["sound"])
    with pytest.raises(DataError, match="absent does not exist; expected a folder"):
        reader(tmp_path / "absent", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="does not exist"):
        reader(tmp_path / "empty", "train")


def test_cityscapes(tmp_path: Path) -> None:
    made_layouts.cityscapes(tmp_path)
    data = Cityscapes(tmp_path, "train")
    assert data.names == ["aachen_000000_000019", "bochum_000000_000313"]
    labels = data[1][1]
    classes, offsets, disparity, inverse = (labels[task] for task in data.label_forms)
    assert classes is not None and offsets is not None and disparity is not None and inverse is not None
    assert set(classes.unique().tolist()) == {0, 10, 13, 255}  # road, sky, car, void
    assert classes[6, 2] == 13
    assert classes[10, 0] == 255
    assert offsets[:, 6, 2].tolist() == [1.5, 0.5]  # from the first pixel to the middle of 4 by 2
    assert offsets[:, 9, 9].tolist() == [-0.5, -0.5]
    assert int((~offsets.isnan()).sum()) == 2 * (8 + 4)
    assert bool(disparity[0, 0].isnan().all())
    assert bool((disparity[0, 1:] == 10).all())
    assert float(inverse[0, 5, 5]) == pytest.approx(10 / (2000 * 0.2))
    test = Cityscapes(tmp_path, "test")[0][1]
    assert [task for task, label in test.items() if label is None] == ["segmentation", "offsets"]


def test_cityscapes_needs_only_the_folders_of_its_tasks(tmp_path: Path) -> None:
    made_layouts.cityscapes(tmp_path)
    camera = tmp_path / "camera" / "val" / "ulm" / "ulm_000000_000019_camera.json"
    camera.write_text("{}")
    with pytest.raises(DataError, match=r"ulm_000000_000019_camera\.json cannot be read: KeyError"):
        Cityscapes(tmp_path, "val", ["inverse_depth"])[0]
    camera.unlink()
    with pytest.raises(DataError, match=r"ulm_000000_000019_camera\.json does not exist"):
        Cityscapes(tmp_path, "val", ["inverse_depth"])[0]
    assert Cityscapes(tmp_path, "val", ["disparity"])[0][1]["disparity"] is not None


def test_nyud(tmp_path: Path) -> None:
    made_layouts.nyud(tmp_path)
    data = NYUD(tmp_path, "val")
    assert data.names == ["0003"]
    labels = data[0][1]
    assert labels["segmentation"][0, :2].tolist() == [255, 39]  # type: ignore[index]
    stored = np.load(tmp_path / "depth" / "0003.npy")
    depth = labels["depth"]
    assert depth is not None
    assert bool(depth[0, 1, 1].isnan())
    assert np.array_equal(depth[0].numpy()[stored > 0], stored[stored > 0])
    assert labels["normals"][:, 2, 2].tolist() == [0, 0, 0]  # type: ignore[index]
    assert set(labels["edges"].unique().tolist()) == {0, 1}  # type: ignore[union-attr]
    batch = next(iter(DataLoader(NYUD(tmp_path, "train"), batch_size=2)))
    assert batch[0].shape == (2, 3, HEIGHT, WIDTH)
    (tmp_path / "depth" / "0003.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"0003\.npy cannot be read as an \.npy file"):
        data[0]
    (tmp_path / "depth" / "0003.npy").unlink()
    with pytest.raises(DataError, match=r"0003\.npy does not exist; expected an \.npy file"):
        data[0]


def test_arrays_of_objects_are_not_loaded(tmp_path: Path) -> None:
    made_layouts.nyud(tmp_path)
    np.save(tmp_path / "depth" / "0003.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        NYUD(tmp_path, "val", ["depth"])[0]


def test_pascal_context(tmp_path: Path) -> None:
    made_layouts.pascal(tmp_path)
    data = PascalContext(tmp_path, "train")
    image, labels = data[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    parts, normals, edges = labels["human_parts"], labels["normals"], labels["edges"]
    assert parts is not None and normals is not None and edges is not None
    assert parts[3, 4:9].tolist() == [1] * 5
    assert parts[4, 4:6].tolist() == [4, 0]
    assert data[1][1]["human_parts"] is None, "nobody is in the second image"
    assert normals[:, 0, 0].tolist() == [0, 0, 0], "no network knows the normals of the sky"
    assert normals[0, 4, 5] > 0.99
    assert labels["saliency"].sum() == 20  # type: ignore[union-attr]
    assert labels["segmentation"][2, 0] == 255  # type: ignore[index]
    assert 0 < edges.sum() < 36
    assert bool((edges[0, 9:] == 0).all())
    second = data[1][1]["segmentation"]
    assert second is not None
    assert second[4, 5] == 15, "read from semseg/pascal-context"


def test_edges_of_pascal_equal_those_of_scikit_image(tmp_path: Path) -> None:
    morphology = pytest.importorskip("skimage.morphology")
    from scipy.ndimage import laplace

    from branchnet.data.labelled.edge_thinning import boundaries, thin

    generator = np.random.default_rng(0)
    for number in range(20):
        small = generator.integers(0, 4, (6, 7))
        classes = np.kron(small, np.ones((4, 4), np.int64)) if number % 2 else generator.integers(0, 3, (17, 13))
        expected = np.abs(laplace(classes.astype(float), mode="mirror")) > 0
        assert np.array_equal(boundaries(classes), expected)
        assert np.array_equal(thin(expected), morphology.thin(expected))


@pytest.mark.parametrize("nested", [False, True])
def test_taskonomy(tmp_path: Path, nested: bool) -> None:
    made_layouts.taskonomy(tmp_path, nested=nested)
    data = Taskonomy(
        tmp_path, "train", ["depth_zbuffer", "normal", "segment_semantic", "edge_texture", "principal_curvature"]
    )
    assert data.names == ["allensville/9_0", "allensville/10_2"]
    depth, normal, classes, edges, curvature = data[0][1].values()
    assert depth is not None and normal is not None and classes is not None
    assert edges is not None and curvature is not None
    assert bool(depth[0, 0].isnan().all())
    assert bool((depth[0, 1:] == 2).all())
    assert normal[:, 0, 0].tolist() == [0, 0, 0]
    assert normal[:, 5, 5].tolist() == pytest.approx([0, 0, 1], abs=0.005)
    assert [int(row[0]) for row in classes[:3]] == [255, 16, 0]
    assert edges.mean() == pytest.approx(0.5, abs=1e-4)
    assert curvature[:, 0, 0].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert Taskonomy(tmp_path, "test").names == ["coffeen/1_1"]


def test_taskonomy_names_what_is_missing(tmp_path: Path) -> None:
    made_layouts.taskonomy(tmp_path)
    next((tmp_path / "normal" / "beechwood").iterdir()).unlink()
    with pytest.raises(
        DataError, match=r"beechwood.point_0_view_0_domain_normal\.png does not exist; expected the label"
    ):
        Taskonomy(tmp_path, "val", ["normal"])[0]
    with pytest.raises(DataError, match="keypoints3d does not exist; expected a folder"):
        Taskonomy(tmp_path, "val", ["keypoints3d"])
    with pytest.raises(DataError, match=r"train_val_test_medium\.csv does not exist"):
        Taskonomy(tmp_path, "val", partition="medium")


@pytest.mark.parametrize("folders", [False, True])
def test_celeba(tmp_path: Path, folders: bool) -> None:
    made_layouts.celeba(tmp_path, folders=folders)
    answers = [CelebA(tmp_path, split)[0][1] for split in CelebA.SPLITS]
    assert [{task: int(label) for task, label in each.items() if label is not None} for each in answers] == [
        {"Smiling": 0, "Young": 1},
        {"Smiling": 1, "Young": 1},
        {"Smiling": 0, "Young": 0},
    ]


def test_celeba_names_damaged_lines(tmp_path: Path) -> None:
    made_layouts.celeba(tmp_path)
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("000002.jpg  1  1", "000002.jpg  1  2"))
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt, line 4: 2 values; expected 2 of -1 and 1"):
        CelebA(tmp_path, "train")
    made_layouts.celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg\n")
    with pytest.raises(DataError, match=r"list_eval_partition\.txt, line 1: '000001\.jpg'; expected a file name"):
        CelebA(tmp_path, "train")


def test_a_label_of_other_proportions_is_refused(tmp_path: Path) -> None:
    made_layouts.nyud(tmp_path)
    np.save(tmp_path / "depth" / "0003.npy", np.ones((WIDTH, HEIGHT)))
    with pytest.raises(DataError, match=f"0003: the label 'depth' is {WIDTH} x {HEIGHT} pixels and the image {HEIGHT}"):
        NYUD(tmp_path, "val", ["depth"])[0]
    np.save(tmp_path / "depth" / "0003.npy", np.arange(1.0, 1 + HEIGHT * WIDTH / 4).reshape(HEIGHT // 2, WIDTH // 2))
    depth = NYUD(tmp_path, "val", ["depth"])[0][1]["depth"]
    assert depth is not None
    assert depth[0, :2, :2].unique().tolist() == [1]


def test_a_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    made_layouts.nyud(tmp_path)
    made_layouts.pixels(tmp_path / "segmentation" / "0003.png", np.full((HEIGHT, WIDTH), 41, np.uint8))
    with pytest.raises(DataError, match="0003: the label 'segmentation' holds the class 40; expected 0 to 39, or 255"):
        NYUD(tmp_path, "val", ["segmentation"])[0]


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    from PIL import Image

    from branchnet.data.labelled.label_files import read_rgb

    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    stored = np.zeros((4, 8, 3), np.uint8)
    stored[:, :4] = 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    found = read_rgb(tmp_path / "a.png")
    assert found.shape == (3, 8, 4)
    assert bool((found[:, :4] == 1).all())


class Constant(nn.Module):
    """Answers alike everywhere: a class for segmentation, values for the rest."""

    def __init__(self, answers: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.answers, self.unused = answers, nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, tasks: list[str] | None = None) -> dict[str, torch.Tensor]:
        spread = {
            task: answer.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:]) for task, answer in self.answers.items()
        }
        classes = nn.functional.one_hot(spread["segmentation"][:, 0].long(), 40).movedim(-1, 1)
        return spread | {"segmentation": classes.double()}


def test_a_network_of_constant_answers_is_evaluated_as_the_constant_scores_say(tmp_path: Path) -> None:
    made_layouts.nyud(tmp_path)
    train, val = NYUD(tmp_path, "train"), NYUD(tmp_path, "val")
    metrics = standard_metrics(train)
    network = Constant(constant_answers(train, metrics))
    found = branchnet.evaluate(network, val, None, metrics)
    assert found == pytest.approx(constant_scores(train, val, metrics))
