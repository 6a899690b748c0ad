"""What a release says of itself: one version, files that fit their schemas, packages that hold what they should."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import branchnet

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[str]:
    jobs = read_yaml(path)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_version_stands_in_one_place_and_is_the_last_that_was_released() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert released[0] == ("Unreleased", "")
    citation = read_yaml(ROOT / "CITATION.cff")
    assert released[1] == (citation["version"], str(citation["date-released"]))
    assert citation["version"] == branchnet.__version__
    written = [
        path
        for path in [*ROOT.glob("*.toml"), *(ROOT / "branchnet").rglob("*.py")]
        if re.search(rf'version\w*\s*=\s*"{re.escape(branchnet.__version__)}"', path.read_text(encoding="utf-8"))
    ]
    assert written == [ROOT / "branchnet" / "__init__.py"]


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_files_fit_their_schemas(schema: str, files: list[Path]) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout + done.stderr


def test_every_python_that_is_promised_is_tested() -> None:
    promised = {name.rpartition(" ")[2] for name in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", name)}
    matrix = read_yaml(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert set(matrix["python"]) == promised
    assert {"ubuntu-latest", "macos-latest", "windows-latest"} == {
        *matrix["os"],
        *(one["os"] for one in matrix["include"]),
    }
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert lowest == min(promised, key=lambda version: tuple(map(int, version.split("."))))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_tests_that_exist_and_may_change_nothing(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    named = [word for command in commands(path) for word in re.findall(r"\btests/[\w/.-]+", command)]
    assert all((ROOT / name).exists() for name in named), named


def test_coverage_must_be_what_is_promised() -> None:
    assert any("--cov-fail-under=92" in command for command in commands(GITHUB / "workflows" / "weekly.yml"))
    assert PROJECT["tool"]["coverage"]["run"]["branch"] is True


def test_bug_reports_ask_for_checks() -> None:
    asked = {field["id"]: field for field in read_yaml(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert "branchnet checks" in asked["checks"]["attributes"]["label"]
    assert asked["checks"]["validations"]["required"]


def test_the_packages_hold_what_they_should(tmp_path: Path) -> None:
    """Built by hatchling: all of the package, its stubs and its ready architectures; no tests, no results."""
    wheels = pytest.importorskip("hatchling.builders.wheel")
    sdists = pytest.importorskip("hatchling.builders.sdist")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    (sdist,) = sdists.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(wheel).name == f"branchnet-{branchnet.__version__}-py3-none-any.whl"
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "branchnet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ready = {path.name for path in (ROOT / "architectures").iterdir()}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == sources | {f"branchnet/architectures/{name}" for name in ready}
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert sources | {f"architectures/{name}" for name in ready} <= held
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "PKG-INFO"} <= held
    assert {name.partition("/")[0] for name in held if "/" in name} == {"branchnet", "architectures"}
