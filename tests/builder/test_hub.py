"""Folders for the Hugging Face Hub: networks come back, huggingface_hub reads the cards, licences are looked at."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import branchnet
from branchnet import Tree
from branchnet.deploy import CardFields, SourceModel, from_pretrained, push_to_hub, save_pretrained
from branchnet.deploy.hub.licences import licence_conflicts
from branchnet.deploy.hub.source_models import front_matter, source_model
from branchnet.errors import CheckpointError, SpecError

TASKS = ("depth", "edges")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OPEN = {"depth": SourceModel("owner/depth-net", "apache-2.0"), "edges": SourceModel("owner/edge-net", "mit")}


@pytest.fixture(scope="module")
def branched() -> branchnet.BranchedNetwork:
    torch.manual_seed(0)
    networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2).eval() for task in TASKS}
    tree = Tree(TASKS, [[TASKS], [("depth",), ("edges",)]])
    return branchnet.build(tree, networks, example=IMAGES, locations=["layer1", "layer3"], init="donor").eval()


def measured(**values: float) -> dict[str, Any]:
    return {"metrics": dict.fromkeys(TASKS, "explained variance"), "networks": {"branched": {"metrics": values}}}


def same_outputs(one: Any, other: Any) -> bool:
    with torch.no_grad():
        return all(torch.equal(one(IMAGES)[task], other(IMAGES)[task]) for task in TASKS)


def test_a_saved_folder_comes_back(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    save_pretrained(branched, tmp_path / "net", card=CardFields(license="Apache-2.0", sources=OPEN))
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == [
        "README.md",
        "architecture.yaml",
        "weights.safetensors",
    ]
    assert same_outputs(from_pretrained(tmp_path / "net"), branched)


def test_the_hub_reads_the_card(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    fields = CardFields(title="Two tasks", license="mit", sources=OPEN, metrics=measured(depth=0.5, edges=0.25))
    save_pretrained(branched, tmp_path, card=fields)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "branchnet" and card.data.license == "mit"
    assert card.data.base_model == ["owner/depth-net", "owner/edge-net"]
    found = {one.task_name: (one.metric_name, one.metric_value) for one in card.data.eval_results}
    assert found == {"depth": ("explained variance", 0.5), "edges": ("explained variance", 0.25)}
    assert card.data.model_name == "Two tasks" and {one.dataset_name for one in card.data.eval_results} == {
        "held-out samples"
    }
    for said in ("(depth, edges)", "| depth | owner/depth-net | apache-2.0 |", "from_pretrained", "multiply-adds"):
        assert said in card.text


def test_metrics_of_a_file_without_numbers_that_are_not_finite(
    branched: branchnet.BranchedNetwork, tmp_path: Path
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(measured(depth=0.5, edges=math.nan)))
    save_pretrained(branched, tmp_path / "net", card=CardFields(metrics=tmp_path / "metrics.json"))
    results = front_matter(tmp_path / "net" / "README.md")["model-index"][0]["results"]
    assert [result["task"]["name"] for result in results] == ["depth"]


def test_one_licence_of_all_sources_is_the_card_s(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    save_pretrained(branched, tmp_path / "one", card=CardFields(sources={t: SourceModel(None, "mit") for t in TASKS}))
    assert front_matter(tmp_path / "one" / "README.md")["license"] == "mit"
    save_pretrained(branched, tmp_path / "two", card=CardFields(sources=OPEN))
    assert "license" not in front_matter(tmp_path / "two" / "README.md")


def test_conflicts_are_warned_of_and_on_the_card(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    sources = OPEN | {"edges": SourceModel("owner/edge-net", "cc-by-nc-4.0")}
    with pytest.warns(UserWarning, match="edges .cc-by-nc-4.0.: non-commercial use only.*'mit' allows more"):
        save_pretrained(branched, tmp_path, card=CardFields(license="mit", sources=sources))
    assert "**Warning**: edges (cc-by-nc-4.0)" in (tmp_path / "README.md").read_text()


def test_exported_files_have_the_licences_on_their_card(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    sources = OPEN | {"depth": SourceModel("owner/depth-net", "agpl-3.0"), "edges": SourceModel(None, "openrail")}
    with pytest.warns(UserWarning, match="depth .agpl-3.0. cannot be combined with edges .openrail."):
        exported = branchnet.export(branched, IMAGES, tmp_path / "net.safetensors", sources=sources)
    card = exported.card.read_text()
    assert "| depth | owner/depth-net | agpl-3.0 |" in card and "**Warning**: depth (agpl-3.0) cannot" in card
    with pytest.raises(SpecError, match="unknown tasks"):
        branchnet.export(branched, IMAGES, tmp_path / "other.safetensors", sources={"colour": SourceModel()})
    assert not (tmp_path / "other.safetensors").exists()


def test_a_card_that_is_there_is_kept(branched: branchnet.BranchedNetwork, tmp_path: Path) -> None:
    save_pretrained(branched, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(branched, tmp_path)  # the same card: nothing to say
    (tmp_path / "README.md").write_text("my own words")
    with pytest.warns(UserWarning, match=r"README.md is kept as it is"):
        save_pretrained(branched, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sources": {"colour": SourceModel()}}, r"unknown tasks: \['colour'\]; expected some of \['depth', 'edges'\]"),
        ({"metrics": {"networks": {}}}, "networks.branched.metrics"),
        ({"metrics": "no/such/file.json"}, "no/such/file.json: the metrics cannot be read"),
        ({"metrics": {"metrics": {}, "networks": {"branched": {"metrics": {"depth": 1.0}}}}}, "KeyError: 'depth'"),
    ],
)
def test_wrong_fields_leave_no_file(
    branched: branchnet.BranchedNetwork, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        save_pretrained(branched, tmp_path / "net", card=CardFields(**fields))
    assert not (tmp_path / "net").exists()


def test_a_licence_is_an_identifier() -> None:
    with pytest.raises(SpecError, match="'MIT, see below' is no licence identifier"):
        CardFields(license="MIT, see below")
    with pytest.raises(SpecError, match="no licence identifier"):
        SourceModel("a/b", "")


def test_only_branched_networks_are_published(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a Linear; expected what"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_licences_of_models_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: CC-BY-NC-4.0\nbase_model: a/b\n---\n# Title\n---\nlicense: mit\n---\n"
    )
    assert source_model(tmp_path) == SourceModel(tmp_path.name, "cc-by-nc-4.0")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: house-terms\n---\n")
    assert source_model(str(tmp_path)).license == "house-terms"
    (tmp_path / "README.md").write_text("# no metadata")
    assert source_model(tmp_path).license is None
    (tmp_path / "README.md").write_text("---\n- a\n- b\n---\n")
    with pytest.raises(SpecError, match="is a list; expected a mapping"):
        source_model(tmp_path)
    (tmp_path / "README.md").write_text("---\na: [1\n---\n")
    with pytest.raises(SpecError, match="not YAML"):
        source_model(tmp_path)


def test_the_card_of_a_model_in_the_hub_s_cache_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "card.md").write_text("---\nlicense: agpl-3.0\n---\n")
    cached = {("owner/net", "README.md"): str(tmp_path / "card.md")}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: cached.get((name, file)))
    assert source_model("owner/net") == SourceModel("owner/net", "agpl-3.0")
    assert source_model("owner/other") == SourceModel("owner/other", None)


@pytest.mark.parametrize(
    ("licences", "result", "said"),
    [
        (["mit", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "cc0-1.0"], "apache-2.0", []),
        (["gpl-3.0", "apache-2.0"], "gpl-3.0", []),
        (["gpl-3.0", "apache-2.0"], "mit", ["under 'gpl-3.0', not 'mit'"]),
        (["gpl-2.0", "apache-2.0"], None, ["cannot be combined with 1 (apache-2.0)"]),
        (["gpl-3.0", "agpl-3.0"], "agpl-3.0", []),
        (["agpl-3.0", "cc-by-nc-4.0"], None, ["non-commercial", "cannot be combined with 1 (cc-by-nc-4.0)"]),
        (["agpl-3.0", "llama3.1"], None, ["terms of its own", "cannot be combined with 1 (llama3.1)"]),
        (["cc-by-nd-4.0", "mit"], None, ["no derivatives"]),
        (["cc-by-nc-4.0", "cc-by-nc-4.0"], "cc-by-nc-4.0", ["non-commercial", "non-commercial"]),
        (["cc-by-sa-4.0", "gpl-3.0"], None, ["each asks for its own licence"]),
        (["openrail", "mit"], "mit", ["terms of its own"]),
        ([None, "mit"], "mit", ["the licence is not known"]),
    ],
)
def test_what_licences_forbid(licences: list[str | None], result: str | None, said: list[str]) -> None:
    """Judged by the licences' texts: GPL section 7 and 10, CC BY-NC 4.0, CC BY-ND 4.0 section 2, Apache and GPL 2."""
    found = licence_conflicts({str(number): licence for number, licence in enumerate(licences)}, result)
    assert len(found) == len(said), found
    assert all(part in sentence for part, sentence in zip(said, found, strict=True)), found


class Api:
    """What HfApi does of what is used, in a folder."""

    def __init__(self, folder: Path, fails: bool = False) -> None:
        self.folder, self.fails, self.calls = folder, fails, []  # type: tuple[Path, bool, list[dict[str, Any]]]

    def __call__(self, *, token: str | None) -> Api:
        self.calls.append({"token": token})
        return self

    def create_repo(self, **given: Any) -> SimpleNamespace:
        self.calls.append(given)
        name = given["repo_id"]
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def file_exists(self, repo_id: str, filename: str, *, revision: str | None = None) -> bool:
        return (self.folder / repo_id / filename).exists()

    def upload_folder(self, *, repo_id: str, folder_path: Path, **given: Any) -> str:
        if self.fails:
            raise ConnectionError("no route")
        self.calls.append(given)
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        for file in folder_path.iterdir():
            (self.folder / repo_id / file.name).write_bytes(file.read_bytes())
        return f"commit of {repo_id}"


def test_what_is_pushed_is_what_is_read(
    branched: branchnet.BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    api, asked = Api(tmp_path), []

    def download(repo_id: str, **given: Any) -> str:
        asked.append(given)
        return str(tmp_path / repo_id)

    monkeypatch.setattr(hub, "HfApi", api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert push_to_hub(branched, "net", private=True, token="secret", branch="dev") == "commit of me/net"
    assert api.calls[0] == {"token": "secret"} and api.calls[1]["private"] and api.calls[2]["revision"] == "dev"
    assert "# net" in (tmp_path / "me" / "net" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "me")  # here no folder is called me/net
    assert same_outputs(from_pretrained("me/net", revision="dev", local_files_only=True), branched)
    assert asked[0]["revision"] == "dev" and asked[0]["local_files_only"]
    assert asked[0]["allow_patterns"] == ["architecture.yaml", "weights.safetensors"]


def test_our_calls_are_those_that_the_hub_s_functions_take() -> None:
    import inspect

    hub = pytest.importorskip("huggingface_hub")
    uploads = inspect.signature(hub.HfApi.upload_folder).parameters
    assert {"repo_id", "repo_type", "folder_path", "commit_message", "revision", "create_pr"} <= set(uploads)
    downloads = inspect.signature(hub.snapshot_download).parameters
    wanted = {"revision", "token", "cache_dir", "force_download", "local_files_only", "allow_patterns"}
    assert wanted <= set(downloads)
    assert {"repo_id", "private", "exist_ok"} <= set(inspect.signature(hub.HfApi.create_repo).parameters)
    assert {"repo_id", "filename", "revision"} <= set(inspect.signature(hub.HfApi.file_exists).parameters)


def test_a_card_that_somebody_wrote_on_the_hub_is_kept(
    branched: branchnet.BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", Api(tmp_path))
    push_to_hub(branched, "me/net")
    (tmp_path / "me" / "net" / "README.md").write_text("by hand")
    (tmp_path / "me" / "net" / "weights.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"me/net has a README.md already, which is kept"):
        push_to_hub(branched, "me/net")
    assert (tmp_path / "me" / "net" / "README.md").read_text() == "by hand"
    assert (tmp_path / "me" / "net" / "weights.safetensors").exists()


def test_failures_of_the_hub(
    branched: branchnet.BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", Api(tmp_path, fails=True))
    with pytest.raises(CheckpointError, match="'me/net' was not uploaded to the Hub: no route"):
        push_to_hub(branched, "me/net")
    with pytest.raises(CheckpointError, match="'owner/net' is no folder, and was not found on the Hub"):
        from_pretrained("owner/net", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="'no such folder' is neither a folder nor an id"):
        from_pretrained("no such folder")


def test_without_the_hub_s_package(
    branched: branchnet.BranchedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'branchnet\[hub\]'"):
        push_to_hub(branched, "me/net")
    save_pretrained(branched, tmp_path)
    assert same_outputs(from_pretrained(tmp_path), branched)
