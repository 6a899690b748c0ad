"""A saved network comes back the same; what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.deploy import save_weights
from branchnet.deploy.checkpoint_metadata import read_record, write_record
from branchnet.deploy.weight_files import checksum, file_checksum, read_metadata
from branchnet.errors import CheckpointError, SpecError
from tests.builder.toys import KINDS, LOCATIONS, images, split_networks

TASKS = tuple(KINDS)
TREE = Tree(TASKS, [[TASKS], [TASKS], [("depth", "edges"), ("scene", "count")]] + [[(t,) for t in TASKS]] * 2)


def test_round_trip_gives_the_same_outputs(tmp_path: Path) -> None:
    branched = branchnet.build(TREE, split_networks(), init="donor")
    branchnet.save(branched, tmp_path)
    loaded = branchnet.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.yaml", "weights.safetensors"]
    assert loaded.tree == TREE and loaded.donors == branched.donors and not loaded.training
    with torch.no_grad():
        expected, found = branched(images()), loaded(images())
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_loading_gives_no_warning_that_python_could_turn_into_an_error(tmp_path: Path) -> None:
    branched = branchnet.build(TREE, split_networks(), init="donor")
    branchnet.save(branched, tmp_path)
    code = (
        "import sys, torch, branchnet\n"
        "network = branchnet.load(sys.argv[1])\n"
        "alone = branchnet.create('branchnet:scene_network', outputs=1, width=2)\n"
        "print(len(branchnet.split(alone, torch.rand(2, 3, 32, 32)).costs) > 0)\n"
        "print(sum(float(output.detach().sum()) for output in network(torch.ones(1, 3, 32, 32)).values()))\n"
        "import fvcore.nn.focal_loss  # its import was not broken off"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = sum(float(output.sum()) for output in branched.eval()(torch.ones(1, 3, 32, 32)).values())
    counted, found = done.stdout.split()
    assert counted == "True" and float(found) == pytest.approx(expected, abs=1e-4)


def test_networks_without_a_constructor_must_be_passed(tmp_path: Path) -> None:
    made: dict[str, nn.Module] = {}
    for name in "ab":
        made[name] = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        made[name].eval()(images())
    cut = branchnet.split_all(made, images(), locations=["1", "2"])
    branched = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor")
    branchnet.save(branched, tmp_path)
    with pytest.raises(SpecError, match="'a', 'b' have no named constructor"):
        branchnet.load(tmp_path)
    loaded = branchnet.load(tmp_path, networks=made)
    assert torch.equal(loaded(images())["b"], branched(images())["b"])


def test_weights_of_another_tree_are_refused_by_name(tmp_path: Path) -> None:
    cut = split_networks()
    branchnet.save(branchnet.build(TREE, cut, init="donor"), tmp_path)
    save_weights(
        branchnet.build(Tree.shared(TASKS, len(LOCATIONS)), cut, init="donor"), tmp_path / "weights.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"nodes\.2\.1\.layer2\.0\.conv1\.weight: not in the file"):
        branchnet.load(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no architecture\.yaml"):
        branchnet.load(tmp_path)


def test_a_specification_of_another_tree_is_not_written(tmp_path: Path) -> None:
    cut = split_networks()
    other = branchnet.Architecture.from_network(branchnet.build(Tree.shared(TASKS, len(LOCATIONS)), cut, init="donor"))
    with pytest.raises(CheckpointError, match="describes another tree"):
        branchnet.save(branchnet.build(TREE, cut, init="donor"), tmp_path, architecture=other)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def kept() -> BranchedNetwork:
    return network_with_a_whole_record()


def network_with_a_whole_record() -> BranchedNetwork:
    """A network whose record has all of its parts: what is frozen, what is recomputed, how it was initialised."""
    branched = branchnet.build(TREE, split_networks(), probe=images(12, 16), init="donor")
    branched.freeze("depth", "heads.2")
    branched.recompute("layer3", "stem")
    return branched


def test_frozen_nodes_recomputed_stages_and_the_report_come_back(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept, tmp_path)
    loaded = branchnet.load(tmp_path)
    assert loaded.frozen == kept.frozen and loaded.recomputed == kept.recomputed == {0, 3}
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in kept.named_parameters() if parameter.requires_grad} != set()
    assert loaded.train().member("nodes.2.1").module.training and not loaded.member("nodes.2.0").module.training
    assert kept.initialisation is not None and kept.initialisation.nodes[0].rsa["edges"] < 1
    assert loaded.initialisation == kept.initialisation
    branchnet.save(loaded.eval(), tmp_path / "again")
    written = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "again")]
    assert written[0] == written[1]


def test_a_report_that_is_not_there_stays_away(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept.remove_task("scene"), tmp_path)
    loaded = branchnet.load(tmp_path)
    assert loaded.initialisation is None and loaded.frozen and "heads.2" not in loaded.frozen


def test_folders_without_a_record_load_as_before(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept, tmp_path)
    save_weights(kept, tmp_path / "weights.safetensors")
    loaded = branchnet.load(tmp_path)
    assert loaded.initialisation is None and not loaded.frozen and not loaded.recomputed
    with torch.no_grad():
        assert torch.equal(loaded(images())["count"], kept.eval()(images())["count"])


def test_a_flipped_bit_is_refused_and_the_way_out_that_is_named_works(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept, tmp_path)
    path = tmp_path / "weights.safetensors"
    sound = path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    for place in (header, (header + len(sound)) // 2, len(sound) - 1):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is damaged or was changed.*save_file"):
            branchnet.load(tmp_path)
    tensors = {name: 2 * value for name, value in load(sound).items()}
    save_file(tensors, path)
    loaded = branchnet.load(tmp_path)
    assert not loaded.frozen and torch.equal(
        loaded.state_dict()["heads.3.head.predict.bias"], tensors["heads.3.head.predict.bias"]
    )
    path.write_bytes(sound)
    assert branchnet.load(tmp_path).frozen == kept.frozen


def test_tensors_that_changed_places_are_refused(kept: BranchedNetwork, tmp_path: Path) -> None:
    """Two tensors of one shape under each other's name: the same bytes, in another order."""
    branchnet.save(kept, tmp_path)
    path = tmp_path / "weights.safetensors"
    tensors, metadata = load(path.read_bytes()), read_metadata(path)
    one, other = (f"nodes.0.0.stem.1.running_{name}" for name in ("mean", "var"))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="checksum"):
        branchnet.load(tmp_path)


def test_the_checksum_is_that_of_the_bytes_in_the_file(tmp_path: Path) -> None:
    """Of names, forms and bytes, cut out of the file by its header alone; for every kind of tensor that there is."""
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    tensors = {f"t{i}": torch.ones((), dtype=kind) for i, kind in enumerate(kinds)}
    tensors |= {"empty": torch.ones(0, 3), "matrix": torch.rand(2, 3)}
    save_file(tensors, tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    digest = hashlib.sha256()
    for name, entry in sorted(json.loads(raw[8:start]).items()):
        first, last = entry["data_offsets"]
        digest.update(f"{name} {tuple(entry['shape'])} {str(tensors[name].dtype)[6:]}\n".encode())
        digest.update(raw[start + first : start + last])
    assert file_checksum(tmp_path / "w.safetensors") == checksum(sorted(tensors.items())) == digest.hexdigest()


def test_a_record_from_before_there_were_checksums_loads(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept, tmp_path)
    record = json.loads(read_metadata(tmp_path / "weights.safetensors")["branchnet"])
    assert len(record.pop("sha256")) == 64
    save_weights(kept, tmp_path / "weights.safetensors", metadata={"branchnet": json.dumps(record)})
    assert branchnet.load(tmp_path).frozen == kept.frozen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"sha256": "0"}, "sha256: String should match pattern"),
        (lambda record: record | {"frozen": ["nodes.9.0"]}, r"frozen: unknown node 'nodes\.9\.0'"),
        (lambda record: record | {"frozen": ["depth"]}, "frozen: unknown node 'depth'"),
        (lambda record: record | {"recomputed": ["layer9"]}, "recomputed: unknown location 'layer9'"),
        (lambda record: record | {"thawed": []}, "thawed: Extra inputs are not permitted"),
        (lambda record: record | {"version": 2}, "version: Input should be 1"),
        (lambda record: record | {"frozen": "nodes.0.0"}, "frozen: Input should be a valid array"),
        (lambda record: {"frozen": []}, "recomputed: Field required"),
        (lambda record: record["initialisation"]["nodes"].pop() and record, "its nodes and their tasks are not"),
        (lambda record: record["initialisation"].update(init="magic") or record, r"initialisation\.init: "),
        (lambda record: record["initialisation"]["nodes"][2]["rsa"].update(mood=1.0) or record, "not serve 'mood'"),
        (lambda record: record["initialisation"]["nodes"][2]["cka"].update(depth=float("nan")) or record, "finite"),
        (lambda record: "{" * 100_000, "Invalid JSON"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    kept: BranchedNetwork, change: Callable[[dict[str, object]], object], message: str
) -> None:
    changed = change(json.loads(write_record(kept)))
    with pytest.raises(CheckpointError, match=message):
        read_record(changed if isinstance(changed, str) else json.dumps(changed), kept)


def test_a_folder_whose_metadata_do_not_fit_is_not_loaded(kept: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.save(kept, tmp_path)
    record = json.loads(read_metadata(tmp_path / "weights.safetensors")["branchnet"])
    save_weights(
        kept, tmp_path / "weights.safetensors", metadata={"branchnet": json.dumps(record | {"frozen": ["heads.4"]})}
    )
    with pytest.raises(CheckpointError, match=r"of another network:\n.*unknown node 'heads\.4'"):
        branchnet.load(tmp_path)


def test_a_specification_with_its_tasks_in_another_order_is_refused(tmp_path: Path) -> None:
    """Weights of heads are stored in the order of the tasks."""
    branched = branchnet.build(TREE, split_networks(), init="donor")
    other = branchnet.Architecture.from_network(
        branchnet.build(Tree(TASKS[::-1], TREE.partitions), split_networks(TASKS[::-1]), init="donor")
    )
    assert other.tree == TREE
    with pytest.raises(CheckpointError, match=r"lists the tasks as \['count', 'scene', 'edges', 'depth'\]"):
        branchnet.save(branched, tmp_path, architecture=other)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes into a file."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10, 20_000])  # neither file, or the specification alone, can be written
def test_a_full_disk_leaves_both_files_as_they_were(kept: BranchedNetwork, tmp_path: Path, size: int) -> None:
    other = branchnet.build(Tree.shared(TASKS, len(LOCATIONS)), split_networks(), init="donor")
    for folder, before in ((tmp_path / "new", None), (tmp_path / "old", other)):
        if before is not None:
            branchnet.save(before, folder)
        files = {path.name: path.read_bytes() for path in folder.glob("*")}
        with full_disk(size), pytest.raises(CheckpointError, match=f"{re.escape(str(folder))}.* cannot be written"):
            branchnet.save(kept, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_network_of_another_run_is_not_replaced_in_silence(tmp_path: Path) -> None:
    networks = split_networks()
    branched = branchnet.build(TREE, networks, init="donor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        branchnet.save(branched, tmp_path)
        branchnet.save(branched, tmp_path)  # trained further
    with pytest.warns(UserWarning, match="held a network with another tree, which is replaced"):
        branchnet.save(branchnet.build(Tree.separate(TASKS, 5), networks, init="donor"), tmp_path)
    with pytest.warns(UserWarning, match="held a network of depth, edges, scene, count, which is replaced"):
        branchnet.save(branched.remove_task("count"), tmp_path)
    (tmp_path / "architecture.yaml").write_text("notes: mine")
    with pytest.warns(UserWarning, match=r"architecture\.yaml is replaced; it could not be read"):
        branchnet.save(branched, tmp_path)
