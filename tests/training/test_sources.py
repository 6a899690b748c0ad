"""Measures, training and evaluation take samples from every container, give the same for all, and read each once."""

from __future__ import annotations

import gc
import logging
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.data.collation import leaves
from branchnet.data.samples import as_example, read_samples
from branchnet.errors import DataError, TrainingError
from branchnet.inference import measure_latency
from branchnet.training import Teachers, explained_variance, reestimate_batchnorm, rmse

TASKS = ("a", "b", "c")
X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = {task: torch.rand(40, n, generator=torch.Generator().manual_seed(n)) for n, task in enumerate(TASKS, start=2)}
MSE = dict.fromkeys(TASKS, nn.functional.mse_loss)
METRICS = {"a": rmse(), "b": explained_variance(), "c": rmse()}


def network(seed: int, outputs: int, *more: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), *more, nn.Linear(64, outputs)
        ).eval()


DONORS = {task: network(n, n) for n, task in enumerate(TASKS, start=2)}
STAGED = branchnet.split_all(DONORS, X[:2], locations=["0", "2"])


def branched(*, shared: bool = True) -> BranchedNetwork:
    tree = Tree.shared(TASKS, 2) if shared else Tree.separate(TASKS, 2)
    return branchnet.build(tree, STAGED, init="donor")


def trains(module: nn.Module, net: nn.Module) -> bool:
    """Whether a hook on `net` is called by a step: copies of it, hooks included, are tried before the first one."""
    return module is net and net.training


class Counting(Dataset[Any]):
    """Samples of what a function makes of a number; counts how often each is asked for, and how many are alive."""

    def __init__(self, make: Callable[[int], Any], count: int = 40) -> None:
        self.make, self.count = make, count
        self.reads = Counter[int]()
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        made = self.make(index)
        self.alive.add(leaves(made)[0])
        gc.collect(0)
        self.most = max(self.most, len(self.alive))
        return made


class Stream(IterableDataset[Any]):
    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        return (self.inner[index] for index in range(len(self.inner)))


def with_labels(index: int) -> tuple[Tensor, dict[str, Tensor]]:
    return X[index].clone(), {task: labels[index] for task, labels in Y.items()}


def augmented(index: int) -> Tensor:
    return X[index].roll(int(torch.randint(8, ())), -1)


SOURCES: dict[str, Callable[[int], Any]] = {
    "array": lambda size: X.numpy(),
    "mapping": lambda size: {"pixel_values": X, **Y},
    "list": lambda size: list(X),
    "list of batches": lambda size: list(X.split(size)),
    "data set": lambda size: TensorDataset(X),
    "data set with labels": lambda size: Counting(with_labels),
    "data set of mappings": lambda size: Counting(lambda i: {"pixel_values": X[i], "label": i}),
    "subset": lambda size: Subset(TensorDataset(torch.cat([X, X])), range(40)),
    "stream": lambda size: Stream(TensorDataset(X)),
    "loader": lambda size: DataLoader(Counting(with_labels), size),
    "loader of a stream": lambda size: DataLoader(Stream(TensorDataset(X)), size),
}


@pytest.mark.parametrize("name", SOURCES)
@given(size=st.integers(2, 41))
@settings(max_examples=3, deadline=None)
def test_affinities_and_metrics_do_not_depend_on_the_container(name: str, size: int) -> None:
    source = SOURCES[name](size)
    expected = branchnet.rsa(STAGED, X, bootstrap=0, batch_size=size)
    found = branchnet.rsa(STAGED, source, bootstrap=0, batch_size=size)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    assert found.probe_hash == expected.probe_hash
    net = branched().eval()
    with torch.no_grad():
        outputs = net(X)
    errors = {task: float((outputs[task] - Y[task]).square().mean().sqrt()) for task in ("a", "c")}
    metrics = branchnet.evaluate(net, source, Y, METRICS, batch_size=size)
    assert {task: metrics[task] for task in errors} == pytest.approx(errors, rel=1e-5)


@pytest.mark.parametrize("name", ["mapping", "data set with labels", "loader"])
def test_labels_from_the_samples_are_those_given_apart(name: str) -> None:
    net = branched().eval()
    given_apart = branchnet.evaluate(net, X, Y, METRICS, batch_size=8)
    assert branchnet.evaluate(net, SOURCES[name](8), None, METRICS, batch_size=8) == given_apart


def test_evaluation_reads_each_sample_once_for_all_tasks_and_holds_one_batch() -> None:
    data = Counting(with_labels)
    branchnet.evaluate(branched().eval(), data, None, METRICS, batch_size=4)
    assert set(data.reads.values()) == {1} and len(data.reads) == 40
    assert data.most <= 8


def test_the_probe_is_read_once_for_all_networks() -> None:
    data = Counting(lambda i: X[i].clone())
    found = branchnet.rsa(STAGED, data, bootstrap=0, batch_size=4)
    assert [data.reads[number] for number in range(40)] == [2] * 4 + [1] * 36  # the first batch is compared
    np.testing.assert_array_equal(found.values, branchnet.rsa(STAGED, X, bootstrap=0).values)


def test_a_large_probe_is_read_by_each_network_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("branchnet.affinity.probes.HELD_BYTES", 10 * X[0].nbytes)
    data = Counting(lambda i: X[i].clone())
    branchnet.rsa(STAGED, data, bootstrap=0, batch_size=4)
    assert set(data.reads.values()) == {1 + len(TASKS)}
    assert data.most <= 20


def test_every_probe_measure_takes_a_data_set_with_labels() -> None:
    data = Counting(with_labels)
    for measure in (branchnet.cka, branchnet.procrustes, branchnet.svcca, branchnet.pwcca):
        found, expected = (measure(STAGED, probe).values for probe in (data, X))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    made, wanted = (branchnet.build(Tree.shared(TASKS, 2), STAGED, probe=probe, init="donor") for probe in (data, X))
    assert made.initialisation.nodes[1].rsa == pytest.approx(wanted.initialisation.nodes[1].rsa)


def test_plain_networks_tell_inputs_from_labels_by_their_signature() -> None:
    data = TensorDataset(X, torch.arange(40))
    found = branchnet.rsa(DONORS, data, locations=["0", "2"], bootstrap=0)
    np.testing.assert_array_equal(found.values, branchnet.rsa(STAGED, X, bootstrap=0).values)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (DataLoader(TensorDataset(X), 8, shuffle=True), "a DataLoader that shuffles; expected.*shuffle=False"),
        (Counting(augmented), "the probe changed: batch 0.*switch shuffling and random augmentation off"),
        (DataLoader(Counting(augmented), 8), "the probe changed: batch 0"),
        (iter([X]), "can be read once only"),
    ],
)
def test_probes_that_would_differ_between_networks_are_refused(probe: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        branchnet.rsa(STAGED, probe, bootstrap=0)


def test_labels_of_a_probe_are_dropped_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "branchnet.affinity.probes"):
        branchnet.rsa(STAGED, DataLoader(TensorDataset(X, Y["a"]), 8), bootstrap=0)
    assert [record.levelname for record in caplog.records if "dropped" in record.message] == ["INFO"]


def test_reading_loaders_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    branchnet.rsa(STAGED, DataLoader(TensorDataset(X), 8), bootstrap=0)
    net, loader = branched(), DataLoader(Counting(augmented), 8, shuffle=True)
    reestimate_batchnorm(net, loader)
    branchnet.distill(net, DONORS, loader, steps=2, progress=False, **LAST)
    assert torch.equal(torch.rand(2), expected)


LAST: dict[str, Any] = {"learning_rate": 1e-3, "keep": "last"}
"""Nothing is held out, and no rates are tried."""

READINGS: dict[str, Callable[[Any], Any]] = {
    "rsa": lambda source: branchnet.rsa(STAGED, source, bootstrap=0),
    "evaluate": lambda source: branchnet.evaluate(branched(), source, None, METRICS),
    "measure_latency": lambda source: measure_latency(lambda x: x, source, repeats=1, warmup=0),
    "gradient_affinity": lambda source: branchnet.gradient_affinity(branched(), source, MSE, learning_rate=0.1),
    "reestimate_batchnorm": lambda source: reestimate_batchnorm(branched(), source),
    "Teachers": lambda source: Teachers(DONORS, source, progress=False),
    "fit": lambda source: branchnet.fit(branched(), source, MSE, steps=7, progress=False),
    "as_example": as_example,
    "first": lambda source: list(read_samples(source).first(9, 4)),
}


@pytest.mark.parametrize("holder", ["loader", "data set", "samples of a loader"])
@pytest.mark.parametrize("reading", READINGS)
def test_reading_leaves_the_global_random_state_and_that_of_a_generator_as_they_were(holder: str, reading: str) -> None:
    data = Counting(lambda i: (augmented(i) if reading != "rsa" else X[i], with_labels(i)[1]))
    own = torch.Generator().manual_seed(4)
    sampler = RandomSampler(data, generator=own) if reading != "rsa" else None
    size = None if holder == "samples of a loader" else 8
    source = data if holder == "data set" else DataLoader(data, size, sampler=sampler, generator=own)
    before, own_before = torch.get_rng_state(), own.get_state()
    READINGS[reading](source)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(own.get_state(), own_before)


def distilled(source: Any, **options: Any) -> BranchedNetwork:
    net = branched()
    branchnet.distill(net, DONORS, source, **({"steps": 4, "batch_size": 8, "progress": False} | LAST | options))
    return net


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["array", "list", "data set", "data set with labels", "subset"])
def test_distilling_from_samples_with_numbers_gives_the_same_weights_bitwise(name: str) -> None:
    assert same_weights(distilled(SOURCES[name](8)), distilled(X))


@pytest.mark.parametrize("name", ["list of batches", "stream", "loader", "loader of a stream"])
def test_samples_in_their_own_order_are_distilled_on_in_that_order(name: str) -> None:
    """Six steps over five batches: one epoch, and the first batch again."""
    seen: list[Tensor] = []
    net = branched()
    net.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if trains(module, net) else None
    )
    branchnet.distill(net, DONORS, SOURCES[name](8), steps=6, batch_size=8, progress=False, **LAST)
    assert torch.equal(torch.cat(seen), torch.cat([X, X[:8]]))


def test_a_shuffling_loader_is_distilled_on_in_another_order_each_epoch_decided_by_the_seed() -> None:
    def order(seed: int) -> list[int]:
        seen: list[int] = []

        def note(number: int) -> Tensor:
            seen.append(number)
            return X[number]

        distilled(DataLoader(Counting(note), 8, shuffle=True), steps=10, seed=seed)
        return seen[-80:]  # those of the steps; before them come those for the variances of the outputs

    first, second = order(0)[:40], order(0)[40:]
    assert sorted(first) == sorted(second) == list(range(40)) and first != second
    assert order(0) == order(0) != order(1)


def test_what_a_shuffling_loader_teaches_does_not_depend_on_the_global_random_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("branchnet.training.teachers.SAMPLES_FOR_VARIANCE", 8)
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        made.append(distilled(DataLoader(Counting(augmented), 8, shuffle=True), steps=2))
    assert same_weights(*made)


def test_workers_do_not_change_what_is_learnt() -> None:
    made = [distilled(DataLoader(Counting(with_labels), 8, shuffle=True, num_workers=n), steps=2) for n in (0, 1)]
    assert same_weights(*made)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["loader", "stream"])
def test_a_resumed_run_reads_on_where_it_was_interrupted(name: str, shuffle: bool, tmp_path: Path) -> None:
    def source() -> Any:
        return DataLoader(TensorDataset(X), 8, shuffle=shuffle) if name == "loader" else Stream(TensorDataset(X))

    def interrupt(module: nn.Module, inputs: Any) -> None:
        if trains(module, net) and next(steps) == 6:
            signal.raise_signal(signal.SIGINT)

    net, steps = branched(), iter(range(100))
    net.register_forward_pre_hook(interrupt)
    options: dict[str, Any] = {"steps": 12, "batch_size": 8, "progress": False, **LAST, "checkpoint": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        branchnet.distill(net, DONORS, source(), **options)
    resumed = branched()
    assert branchnet.distill(resumed, DONORS, source(), **options).resumed_at == 7
    assert same_weights(resumed, distilled(source(), steps=12))


class Mixing(Stream):
    """Gives its samples through a buffer from which each is drawn at random, as streams are shuffled."""

    def __iter__(self) -> Iterator[Any]:
        buffer: list[Any] = []
        for sample in super().__iter__():
            buffer.append(sample)
            if len(buffer) == 10:
                yield buffer.pop(int(torch.randint(10, ())))
        yield from buffer


def shuffled(kind: str, workers: int = 0) -> Any:
    """Random order, random augmentation, and a generator of its own for the loader, its sampler, or neither."""
    data = Counting(lambda i: (augmented(i), {task: labels[i] for task, labels in Y.items()}))
    own = torch.Generator().manual_seed(int(torch.randint(99, ()))) if "generator" in kind else None
    if kind == "stream":
        return DataLoader(Mixing(data), 8)
    if kind == "sampler's generator":
        return DataLoader(data, 8, sampler=RandomSampler(data, replacement=True, num_samples=77, generator=own))
    return DataLoader(data, 8, shuffle=True, generator=own, num_workers=workers)


def interrupted_and_resumed(train: Callable[..., Any], source: Callable[[], Any], path: Path, at: int) -> nn.Module:
    net, steps = with_dropout(), iter(range(100))

    def interrupt(module: nn.Module, inputs: Any) -> None:
        if trains(module, net) and next(steps) == at:
            signal.raise_signal(signal.SIGINT)

    net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(net, source(), checkpoint=path)
    resumed = with_dropout()
    assert train(resumed, source(), checkpoint=path).resumed_at == at + 1
    return resumed


def with_dropout() -> BranchedNetwork:
    donors = {task: network(n, n, nn.Dropout(0.3)) for n, task in enumerate(TASKS, start=2)}
    return branchnet.build(
        Tree.shared(TASKS, 2), branchnet.split_all(donors, X[:2], locations=["0", "2"]), init="donor"
    )


def run_distill(net: BranchedNetwork, source: Any, **options: Any) -> Any:
    return branchnet.distill(net, DONORS, source, steps=12, progress=False, **LAST | options)


def run_fit(net: BranchedNetwork, source: Any, **options: Any) -> Any:
    return branchnet.fit(net, source, MSE, steps=12, progress=False, **LAST | options)


@pytest.mark.parametrize("at", [2, 7])
@pytest.mark.parametrize("kind", ["shuffle", "generator", "sampler's generator", "stream"])
@pytest.mark.parametrize("train", [run_distill, run_fit])
def test_a_resumed_run_is_the_same_with_augmentation_dropout_and_generators(
    train: Callable[..., Any], kind: str, at: int, tmp_path: Path
) -> None:
    """Whatever the state of the loader's generator: each process may bring another."""
    expected = with_dropout()
    train(expected, shuffled(kind))
    assert same_weights(interrupted_and_resumed(train, lambda: shuffled(kind), tmp_path / "run", at), expected)
    one = shuffled(kind)  # read by all three runs
    assert same_weights(interrupted_and_resumed(train, lambda: one, tmp_path / "other", at), expected)


def test_a_loader_with_workers_and_a_generator_is_resumed_as_well(tmp_path: Path) -> None:
    expected = with_dropout()
    run_fit(expected, shuffled("generator", 2))
    found = interrupted_and_resumed(run_fit, lambda: shuffled("generator", 2), tmp_path / "run", 6)
    assert same_weights(found, expected)


@pytest.mark.parametrize("make", [augmented, lambda i: augmented(i) + np.random.default_rng().random()])
@pytest.mark.parametrize("loader", [False, True])
def test_teachers_see_what_the_student_sees(make: Callable[[int], Tensor], loader: bool) -> None:
    """Separate networks are their own teachers: whatever the augmentation, their loss stays 0 where they stay."""
    source: Any = Counting(lambda i: make(i).float())
    source = DataLoader(source, 8, shuffle=True) if loader else source
    net = branched(shared=False)
    net.freeze(*[node.id for node in net.members() if node.id.startswith("nodes.")])
    history = branchnet.distill(
        net, DONORS, source, steps=10, batch_size=8, learning_rate=0.0, seed=1, keep="last", progress=False
    )
    assert max(max(losses) for losses in history.losses.values()) < 1e-9


def test_outputs_are_recorded_with_one_reading_for_all_tasks() -> None:
    data = Counting(lambda i: X[i].clone())
    runs: list[int] = []
    donors = {task: network(n, n) for n, task in enumerate(TASKS, start=2)}
    own = set(donors.values())  # copies of them are tried before
    for donor in donors.values():
        donor.register_forward_hook(lambda module, _, output: runs.append(len(output)) if module in own else None)
    teachers = Teachers(donors, data, batch_size=8, progress=False)
    assert sum(runs) == 3 * 40
    assert [data.reads[number] for number in range(40)] == [2] * 8 + [1] * 32  # the first eight are compared
    data.reads.clear(), runs.clear()
    branchnet.distill(branched(), teachers, data, steps=5, batch_size=8, progress=False, **LAST)
    # Nothing is run again; two samples are read before the first step, to compare the forms of outputs.
    assert runs == [] and sorted(data.reads.values()) == [1] * 38 + [2] * 2


@pytest.mark.parametrize("by_number", [False, True])
def test_samples_that_change_later_are_noticed(by_number: bool, caplog: pytest.LogCaptureFixture) -> None:
    drift = {"by": 0.0}
    data = Counting(lambda i: X[i] + drift["by"])
    teachers = Teachers(DONORS, data, progress=False)
    drift["by"] = 1.0
    batch = torch.arange(3, 6) if by_number else teachers.samples.take(torch.arange(3, 6))
    with torch.no_grad():
        expected = DONORS["b"](X[3:6] + 1)
    torch.testing.assert_close(teachers.outputs(batch, ["b"], torch.device("cpu"))["b"], expected)
    assert "other samples when it is read again" in caplog.text


def test_distilling_holds_a_few_batches_of_a_large_data_set() -> None:
    data = Counting(lambda i: X[i % 40].clone(), count=400)
    teachers = Teachers(DONORS, data, batch_size=8, recorded_bytes=0, progress=False)
    branchnet.distill(branched(), teachers, data, steps=5, batch_size=8, progress=False, **LAST)
    assert data.most <= 64 + 16  # statistics are estimated on batches of 64


def fitted(source: Any, labels: Any, **options: Any) -> BranchedNetwork:
    net = branched()
    train = source if labels is None else (source, labels)
    branchnet.fit(net, train, MSE, **({"steps": 4, "batch_size": 8, "progress": False} | LAST | options))
    return net


def test_labels_in_the_data_set_train_as_labels_given_apart_do() -> None:
    expected = fitted(X, Y)
    for source in (Counting(with_labels), (X, Y), {"pixel_values": X, **Y}, [with_labels(i) for i in range(40)]):
        assert same_weights(fitted(source, None), expected)
    assert same_weights(fitted(X.numpy(), {task: labels.numpy() for task, labels in Y.items()}), expected)


def test_a_loader_trains_on_its_own_labels_whatever_its_order_or_workers() -> None:
    made = [fitted(DataLoader(Counting(with_labels), 8, shuffle=True, num_workers=n), None) for n in (0, 1)]
    assert same_weights(*made)
    ordered = DataLoader(TensorDataset(X), 8)
    assert same_weights(fitted(ordered, Y), fitted(DataLoader(Counting(with_labels), 8), None))
    with pytest.raises(DataError, match=r"the loader's order is not known.*expected labels from the loader itself"):
        fitted(DataLoader(TensorDataset(X), 8, shuffle=True), Y)
    with pytest.raises(DataError, match="several workers read a stream"):
        branchnet.evaluate(branched(), DataLoader(Stream(TensorDataset(X)), 8, num_workers=2), Y, METRICS)


def test_a_single_network_takes_labels_of_its_own_samples() -> None:
    nets = [network(9, 2) for _ in range(2)]
    options: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}
    branchnet.fit(nets[0], (X, Y["a"]), nn.functional.mse_loss, **options)
    branchnet.fit(nets[1], TensorDataset(X, Y["a"]), nn.functional.mse_loss, **options)
    assert same_weights(*nets)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (X, "the samples have no labels; expected"),
        (TensorDataset(X, Y["a"]), "labels without task names; expected"),
        (Counting(lambda i: (X[i], {"a": Y["a"][i], "b": Y["b"][i]})), r"lack labels of \['c'\]"),
        ((batch for batch in X.split(8)), "can be read once only"),
    ],
)
def test_labels_that_are_missing_are_named(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted(source, None)


def test_too_few_targets_of_a_stream_are_noticed() -> None:
    few = {task: labels[:-1] for task, labels in Y.items()}
    with pytest.raises(DataError, match="labels of another number"):
        branchnet.evaluate(branched(), Stream(TensorDataset(X)), few, METRICS)
    more = {task: torch.cat([labels, labels]) for task, labels in Y.items()}
    with pytest.raises(TrainingError, match=r"the numbers of targets are .*; expected 40"):
        branchnet.evaluate(branched(), Stream(TensorDataset(X)), more, METRICS)


def test_gradient_affinities_take_samples_and_loaders_with_labels() -> None:
    net = branched().eval()
    batches = [(x, {task: Y[task][i * 8 : i * 8 + 8] for task in TASKS}) for i, x in enumerate(X.split(8))]
    expected = branchnet.gradient_affinity(net, batches, MSE, learning_rate=0.1, bootstrap=0)
    data = Counting(with_labels)
    for source in (data, DataLoader(data, 8), Stream(data), (X, Y), iter(batches)):
        data.reads.clear()
        found = branchnet.gradient_affinity(net, source, MSE, batch_size=8, learning_rate=0.1, bootstrap=0)
        np.testing.assert_array_equal(found.values, expected.values)
        assert set(data.reads.values()) <= {1}


def test_latency_is_measured_on_a_loaders_first_batch_or_one_sample() -> None:
    sizes: list[int] = []
    for source in (DataLoader(TensorDataset(X, Y["a"]), 8), TensorDataset(X), X.numpy()):
        measure_latency(lambda x: sizes.append(len(x)), source, repeats=1, warmup=0)
    assert sizes == [8, 1, 40]


class Mixed(nn.Module):
    """Takes keywords, as networks of transformers do, labels among them."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(9, 4), nn.Linear(4, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Tensor:
        hidden = self.embed(input_ids)
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.last((hidden * weights[..., None]).sum(1))


def test_networks_of_keywords_take_their_entries_of_each_sample() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(9, (12, 5)), torch.randint(2, (12, 5))
    whole = {"input_ids": ids, "attention_mask": mask}
    rows = [{"labels": i % 2, "input_ids": ids[i].tolist(), "attention_mask": mask[i], "text": "t"} for i in range(12)]
    nets = {task: Mixed(n).eval() for n, task in enumerate("ab", start=2)}
    staged = branchnet.split_all(nets, {name: value[:2] for name, value in whole.items()})
    expected = branchnet.rsa(staged, whole, bootstrap=0).values
    for probe in (rows, {**whole, "labels": torch.arange(12)}):
        np.testing.assert_allclose(branchnet.rsa(staged, probe, bootstrap=0).values, expected, atol=1e-6)
    net = branchnet.build(Tree.shared(("a", "b"), len(staged["a"].locations)), staged, init="donor")
    branchnet.distill(net, nets, rows, steps=2, batch_size=4, progress=False)
    branchnet.fit(nets["a"], rows, nn.functional.cross_entropy, steps=2, batch_size=4, progress=False)
