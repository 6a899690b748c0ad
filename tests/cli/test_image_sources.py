"""Factories of images in a config: whatever can be read by number is divided and run on as tensors are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import branchnet
from branchnet.data import ImageFolder, to_images
from branchnet.data.samples import Samples
from branchnet.errors import DataError
from branchnet.pipeline import problem
from branchnet.pipeline.config import config_sources
from branchnet.pipeline.config.run_config import RunConfig

BYTES = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = to_images(BYTES)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return BYTES[index].movedim(0, -1).numpy(), index


CONFIG = RunConfig.model_validate(
    {
        "networks": {
            task: {"constructor": "branchnet:scene_network", "arguments": {"outputs": 1, "width": 4}} for task in "ab"
        },
        "images": {"factory": "made:images"},
        "budget": "60% params",
        "batch_size": 4,
        "probe": 5,
    }
)
NETWORKS = {
    task: branchnet.create("branchnet:scene_network", outputs=n, width=4).eval() for n, task in enumerate("ab", 1)
}


def read(returned: Any, monkeypatch: pytest.MonkeyPatch) -> Samples:
    monkeypatch.setattr(config_sources, "call_factory", lambda name, folder: returned)
    return config_sources.read_images(CONFIG, Path())


@pytest.mark.parametrize(
    "make",
    [
        lambda: IMAGES,
        lambda: BYTES.movedim(1, -1).numpy(),
        lambda: IMAGES.movedim(1, -1).numpy(),
        lambda: list(BYTES),
        lambda: TensorDataset(IMAGES, torch.arange(20)),
        Pairs,
    ],
)
def test_a_run_takes_whatever_can_be_read_by_number(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, images = read(IMAGES, monkeypatch), read(make(), monkeypatch)
    parts = [problem.divide(samples, CONFIG) for samples in (expected, images)]
    for one, other in zip(*parts, strict=True):
        batches = [torch.cat([batch.inputs for batch in samples.batches(3)]) for samples in (one, other)]
        assert torch.equal(*batches)
    assert torch.equal(*(problem.probe_of(train, CONFIG) for train, _ in parts))
    outputs = [problem.donor_outputs(NETWORKS, test, 4) for _, test in parts]
    assert all(torch.equal(outputs[0][task], outputs[1][task]) for task in NETWORKS)
    assert problem.images_hash(images) == problem.images_hash(read(make(), monkeypatch))
    assert problem.images_hash(images) != problem.images_hash(read(IMAGES.flip(0), monkeypatch))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "images: factory 'made:images': expected images.*a NoneType; expected"),
        (torch.rand(20), "expected images.*expected more than a number"),
        ((image for image in IMAGES), "can be read once only"),
        (DataLoader(TensorDataset(IMAGES), 4), "expected images.*expected samples that can be read by number"),
    ],
)
def test_what_a_run_cannot_divide_is_refused(returned: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=message):
        read(returned, monkeypatch)


def test_a_folder_that_is_read_on_demand_gives_the_same_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for number, image in enumerate(BYTES):
        Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / f"{number:02}.png")
    config = CONFIG.model_copy(
        update={"images": CONFIG.images.model_copy(update={"folder": tmp_path, "factory": None, "size": 16})}
    )
    found = []
    for limit in (0, 2**30):
        monkeypatch.setattr(config_sources, "BYTES_IN_MEMORY", limit)
        samples = config_sources.read_images(config, Path())
        assert isinstance(samples.source, ImageFolder) is (limit == 0)
        found.append(torch.cat([batch.inputs for batch in problem.divide(samples, config)[0].batches(7)]))
    assert torch.equal(*found)
    train = problem.divide(IMAGES, config)[0]
    torch.testing.assert_close(found[0], torch.cat([batch.inputs for batch in train.batches(7)]))
