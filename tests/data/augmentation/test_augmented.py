"""Augmentation that depends on seed, epoch and number alone."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

v2 = pytest.importorskip("torchvision.transforms.v2")

from branchnet.data import Augmented, LabelForm  # noqa: E402
from branchnet.errors import DataError  # noqa: E402


class Made(Dataset[Any]):
    """Four images with a depth map."""

    label_forms = {"depth": LabelForm("depth")}  # noqa: RUF012

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor | None]]:
        values = torch.arange(100.0).view(1, 10, 10) + 1000 * range(4)[index]
        return values.expand(3, 10, 10), {"depth": values if index != 2 else None}


TRANSFORM = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop((8, 8), antialias=False)])


def depths(data: Augmented, order: Any) -> dict[int, Tensor | None]:
    return {number: data[number][1]["depth"] for number in order}


def same(first: dict[int, Tensor | None], second: dict[int, Tensor | None]) -> bool:
    return all(
        (first[n] is None and second[n] is None) or torch.equal(first[n], second[n])  # type: ignore[arg-type]
        for n in first
    )


def test_order_workers_and_outer_random_state_change_nothing() -> None:
    data = Augmented(Made(), TRANSFORM, seed=3)
    expected = depths(data, range(4))
    assert expected[2] is None
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same(depths(data, [3, 1, 0, 2]), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(depths(Augmented(Made(), TRANSFORM, seed=4), range(4)), expected) is False
    assert torch.equal(data[-1][0], data[3][0])


def test_epochs_differ_and_can_be_asked_for() -> None:
    data = Augmented(Made(), TRANSFORM)
    first = depths(data, range(4))
    data.set_epoch(1)
    second = depths(data, range(4))
    assert not same(first, second)
    assert same({n: data[0, n][1]["depth"] for n in range(4)}, first)
    data.set_epoch(0)
    assert same({n: data[1, n][1]["depth"] for n in range(4)}, second)


def test_workers_that_live_on_see_the_epoch() -> None:
    data = Augmented(Made(), TRANSFORM)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    found = []
    for epoch in range(2):
        data.set_epoch(epoch)
        found.append([image for image, _ in loader])
    for epoch, images in enumerate(found):
        for number, image in enumerate(images):
            assert torch.equal(image, data[epoch, number][0])


def test_labels_are_read_without_change() -> None:
    data = Augmented(Made(), TRANSFORM)
    assert data.labels(1)["depth"].shape == (1, 10, 10)  # type: ignore[union-attr]
    assert len(data) == 4


def test_forms_are_needed() -> None:
    with pytest.raises(DataError, match="list has no label_forms"):
        Augmented([1, 2], TRANSFORM)


def test_it_can_be_sent_to_another_process() -> None:
    data = Augmented(Made(), TRANSFORM, seed=3)
    copied = pickle.loads(pickle.dumps(data))
    assert same(depths(copied, range(4)), depths(data, range(4)))


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"need torchvision: pip install 'branchnet\[vision\]'"):
        Augmented(Made(), TRANSFORM)
