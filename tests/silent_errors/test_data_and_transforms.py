"""What may be passed as samples, augmentation that teachers and students both see, transforms that belong to a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import branchnet
from branchnet import BranchedNetwork, StagedNetwork, Tree
from branchnet.errors import CheckpointError, DataError, TrainingError

pytestmark = pytest.mark.slow

X = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(0))


def network(outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(outputs)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(8 * 8 * 8, outputs)),
        ).eval()


NETWORKS = {"a": network(3), "b": network(5)}


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index]


class Labelled(Images):
    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


class Named(Images):
    """As Hugging Face's data sets give their samples."""

    def __getitem__(self, index: int) -> Any:
        return {"pixel_values": X[index], "labels": int(Y[index])}


class Augmented(Images):
    def __getitem__(self, index: int) -> Any:
        return X[index].roll(int(torch.randint(32, ())), -1).flip(-1) if torch.rand(()) < 0.5 else X[index]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


FORMS: dict[str, Callable[[], Any]] = {
    "data set": Images,
    "data set with labels": Labelled,
    "TensorDataset": lambda: TensorDataset(X),
    "subset": lambda: Subset(Images(), range(40)),
    "loader": lambda: DataLoader(Images(), 8),
    "loader with labels": lambda: DataLoader(Labelled(), 8),
    "loader with workers": lambda: DataLoader(Images(), 8, num_workers=1),
    "samples by name": Named,
    "loader of samples by name": lambda: DataLoader(Named(), 8),
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), 8),
    "array": X.numpy,
    "list of images": lambda: list(X),
    "list of batches": lambda: list(X.split(8)),
}


def staged(transforms: Any = None) -> dict[str, StagedNetwork]:
    return branchnet.split_all(NETWORKS, X[:1], transforms=transforms)


def branched(make: Callable[..., Tree], networks: dict[str, StagedNetwork] | None = None) -> BranchedNetwork:
    given = networks or staged()
    return branchnet.build(make(["a", "b"], depth=len(given["a"].locations)), given, init="donor")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_samples_gives_the_same(form: str) -> None:
    expected = branchnet.rsa(staged(), X, bootstrap=0).values
    found = branchnet.rsa(staged(), FORMS[form](), bootstrap=0).values
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected))
    history = branchnet.distill(branched(Tree.shared), NETWORKS, FORMS[form](), steps=3, batch_size=8, progress=False)
    assert all(len(losses) == 3 for losses in history.losses.values())


SHUFFLED: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(Images(), 8, shuffle=True),
    "loader with labels and workers": lambda: DataLoader(Labelled(), 8, num_workers=1, shuffle=True),
    "augmented": Augmented,
    "augmented loader": lambda: DataLoader(Augmented(), 8),
}


@pytest.mark.parametrize("form", SHUFFLED)
def test_what_changes_trains_and_is_no_probe(form: str) -> None:
    with pytest.raises(DataError, match="expected the same inputs in the same order for every network"):
        branchnet.rsa(staged(), SHUFFLED[form](), bootstrap=0)
    branchnet.distill(branched(Tree.shared), NETWORKS, SHUFFLED[form](), steps=3, batch_size=8, progress=False)


def test_a_generator_is_refused_with_the_way_out() -> None:
    for use in (
        lambda samples: branchnet.rsa(staged(), samples, bootstrap=0),
        lambda samples: branchnet.distill(branched(Tree.shared), NETWORKS, samples, steps=3, progress=False),
    ):
        with pytest.raises(DataError, match=r"generator.* pass list\(\.\.\.\) of it, or an IterableDataset"):
            use(x for x in X.split(8))


@pytest.mark.parametrize("form", [Images, Augmented])
def test_teachers_see_what_the_student_sees(form: Callable[[], Any]) -> None:
    """A student that is its teachers has no loss, whatever is drawn for a sample."""
    net = branched(Tree.separate)
    history = branchnet.distill(
        *(net, NETWORKS, form()),
        **{"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "progress": False},
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-3),
    )
    assert max(max(losses) for losses in history.losses.values()) < 1e-9
    for task, plain in NETWORKS.items():
        torch.testing.assert_close(net.eval()(X)[task], plain(X))


def test_normalisation_of_each_task_is_kept_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from torchvision.transforms.v2 import Normalize

    transforms = {"a": Normalize([0.4] * 3, [0.3] * 3), "b": Normalize([0.6] * 3, [0.3] * 3)}
    expected = {task: plain(transforms[task](X)) for task, plain in NETWORKS.items()}
    net = branched(Tree.separate, staged(transforms))
    branchnet.save(net, tmp_path)
    loaded = branchnet.load(tmp_path, networks=staged(transforms))
    for one in (net, loaded):
        assert all(torch.equal(output, expected[task]) for task, output in one.eval()(X).items())
    with pytest.raises(CheckpointError, match="was saved with Normalize"):
        branchnet.load(tmp_path, networks=NETWORKS)
    settings: dict[str, Any] = {"steps": 1, "batch_size": 6, "progress": False}
    with pytest.raises(TrainingError, match="are given without"):
        branchnet.distill(net, NETWORKS, X, **settings)
    history = branchnet.distill(net, staged(transforms), X, **settings)
    assert max(losses[0] for losses in history.losses.values()) < 1e-9
