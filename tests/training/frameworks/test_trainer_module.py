"""A branched network trained by Hugging Face's Trainer is what a plain loop makes of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet import Tree
from branchnet.errors import DataError, TrainingError
from branchnet.training import for_trainer
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators
from tests.training.frameworks.toys import LABELS, LOSSES, TASKS, X, branched, known_losses, same

define_torchvision_operators()


def rows(*, none: bool = False) -> list[dict[str, Any]]:
    """Samples by name; labels that are missing are NaN, or None."""
    found = [
        {"x": x, "unused": 1} | {task: labels[number] for task, labels in LABELS.items()} for number, x in enumerate(X)
    ]
    missing = [{task: None for task in TASKS if none and one[task].isnan().any()} for one in found]
    return [one | no for one, no in zip(found, missing, strict=True)]


def train(model: nn.Module, folder: Path, data: list[dict[str, Any]], **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        lr_scheduler_type="constant", learning_rate=1e-2, max_grad_norm=0.0, **settings,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, data_collator=model.data_collator, train_dataset=data, eval_dataset=data,
        optimizers=(torch.optim.SGD(model.parameters(), lr=1e-2), None),
    )  # fmt: skip
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    return trainer


def by_hand(steps: int, accumulate: int = 1) -> Any:
    network = branched().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    batches = torch.arange(12).split(4)
    for step in range(steps):
        optimizer.zero_grad()
        for part in batches[step * accumulate : (step + 1) * accumulate]:
            (torch.stack(list(known_losses(network, part).values())).sum() / accumulate).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("none", [False, True])
def test_three_steps_are_those_of_a_plain_loop(none: bool, tmp_path: Path) -> None:
    network = branched()
    model = for_trainer(network, LOSSES)
    trainer = train(model, tmp_path, rows(none=none), max_steps=3)
    expected = by_hand(3)
    assert same(network, expected)
    network.eval(), expected.eval()
    found = trainer.evaluate()  # no argument is named as labels, so that the loss is not asked for
    assert "eval_runtime" in found


def test_accumulated_batches_are_averaged_by_the_trainer(tmp_path: Path) -> None:
    network = branched()
    train(for_trainer(network, LOSSES), tmp_path, rows(), max_steps=1, gradient_accumulation_steps=3)
    assert same(network, by_hand(1, accumulate=3))


def test_predictions_and_labels_come_back_by_task(tmp_path: Path) -> None:
    network = branched()
    trainer = train(for_trainer(network, LOSSES), tmp_path, rows(), max_steps=1, label_names=list(TASKS))
    found = trainer.predict(rows())
    network.eval()
    with torch.no_grad():
        outputs = network(X)
    for task in TASKS:
        assert torch.allclose(torch.from_numpy(found.predictions[task]), outputs[task], atol=1e-6)
    assert found.label_ids[1].shape == (12, 2)
    assert "test_loss" in found.metrics


def test_labels_by_name_and_as_a_mapping_are_the_same() -> None:
    model = for_trainer(branched(), LOSSES).eval()
    part = torch.arange(4)
    named = model(x=X[part], **{task: labels[part] for task, labels in LABELS.items()})
    mapped = model(x=X[part], labels={task: labels[part] for task, labels in LABELS.items()})
    expected = sum(known_losses(model.network, part).values())
    assert torch.equal(named["loss"], mapped["loss"])
    assert torch.allclose(named["loss"], expected)
    assert list(named["logits"]) == list(TASKS)
    assert list(model(x=X)) == ["logits"]


def test_a_batch_without_labels_changes_nothing() -> None:
    model = for_trainer(branched(), LOSSES).train()
    outputs = model(x=X[:2], a=torch.full((2, 1), torch.nan))
    outputs["loss"].backward()
    assert float(outputs["loss"]) == 0
    assert outputs["logits"] == {}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_have_the_names_that_the_donors_take() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.head(self.words(input_ids) * attention_mask[..., None])[:, 0]

    example = {"input_ids": torch.randint(9, (2, 3)), "attention_mask": torch.ones(2, 3)}
    tree = Tree.shared(["sentiment", "topic: news"], 1)
    networks = {task: Words() for task in tree.tasks}
    network = branchnet.build(tree, networks, example=example, locations=["words"], init="donor")
    model = for_trainer(network, dict.fromkeys(tree.tasks, branchnet.training.class_loss()))
    names = list(inspect.signature(model.forward).parameters)
    assert names == ["input_ids", "attention_mask", "labels", "sentiment"]  # the other is no name of an argument
    labels = {"sentiment": torch.tensor([0, 1]), "topic: news": torch.tensor([1, -100])}
    assert model(**example, labels=labels)["loss"].isfinite()


def test_a_weighting_gives_its_gradients() -> None:
    model = for_trainer(branched(), LOSSES, weights={"a": 2.0, "b": 0.5}).train()
    part = torch.arange(4)
    model(x=X[part], **{task: labels[part] for task, labels in LABELS.items()})["loss"].backward()
    expected = branched().train()
    losses = known_losses(expected, part)
    (2 * losses["a"] + losses["b"] / 2).backward()
    for one, other in zip(model.network.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]


def test_what_cannot_be_wrapped_or_called_is_refused() -> None:
    with pytest.raises(TrainingError, match="given a Linear; expected a BranchedNetwork"):
        for_trainer(nn.Linear(2, 2), LOSSES)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="'famo' needs the losses again"):
        for_trainer(branched(), LOSSES, weights="famo")
    model = for_trainer(branched(), LOSSES)
    with pytest.raises(DataError, match=r"called with \['x', 'img'\]; expected one input"):
        model(x=X, img=X)
    with pytest.raises(DataError, match=r"the labels name \['c'\]; expected some of \['a', 'b'\]"):
        model(x=X, labels={"c": X})
    with pytest.raises(DataError, match="the samples are not mappings"):
        model.data_collator([X])
