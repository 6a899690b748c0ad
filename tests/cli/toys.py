"""A folder with three tiny networks, their weights, images and a config; and the command run inside this process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

import branchnet
from branchnet.cli import main
from branchnet.data import scenes
from branchnet.deploy import save_weights

TASKS = {"edges": "dense", "depth": "dense", "count": "image"}
SIZE = 32


def make_folder(folder: Path) -> Path:
    """Write the networks' weights, the images (uint8, channels last) and run.yaml."""
    lines = ["networks:"]
    for seed, (task, kind) in enumerate(TASKS.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4)
        save_weights(network, folder / f"{task}.safetensors")
        made = f'constructor: "branchnet:scene_network", arguments: {{outputs: 1, kind: {kind}, width: 4}}'
        lines.append(f"  {task}: {{{made}, weights: {task}.safetensors}}")
    pixels = (scenes(40, size=SIZE).images.movedim(1, -1).numpy() * 255).astype(np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    lines += ["images: {npz: images.npz, size: 32}", "budget: 60% params", "steps: 2", "batch_size: 8"]
    (folder / "run.yaml").write_text("\n".join(lines) + "\n")
    return folder


def walk(folder: Path, lines: Iterable[str]) -> None:
    """Run lines of the command in a folder, of which none may fail."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in lines:
            assert main(line.split()) == 0, line
    finally:
        os.chdir(before)


class Walker:
    """Runs the command in a folder; `out` and `err` hold what the last call printed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.out = self.err = ""
        self._capsys = capsys
        monkeypatch.chdir(folder)

    def __call__(self, line: str) -> int:
        self._capsys.readouterr()
        code = main(line.split())
        self.out, self.err = self._capsys.readouterr()
        return code
