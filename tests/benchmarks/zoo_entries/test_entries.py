# ruff: noqa: RUF001  (Cyrillic)
"""Whole entries, read from small folders that are laid out as the packages are, and what fills such folders."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from .modules import zoo
from .test_faces import made_weights as face_weights
from .test_natasha import SHAPES, archive
from .test_natasha import made_weights as text_weights
from .test_tesseract import made, network_bytes, traineddata


def check(entry: Any) -> None:
    """The networks take the inputs, in evaluation mode; what is held out is of the same form and something else."""
    assert set(entry.kinds) == set(entry.networks) and set(entry.kinds.values()) <= {"classification", "regression"}
    probe, held_out = (x if isinstance(x, tuple) else (x,) for x in (entry.probe, entry.held_out))
    for network in entry.networks.values():
        assert not network.training
        network(*(x[:2] for x in probe))
    assert [(x.shape[1:], x.dtype) for x in probe] == [(x.shape[1:], x.dtype) for x in held_out]
    assert {x.numpy().tobytes() for x in probe[0]}.isdisjoint(x.numpy().tobytes() for x in held_out[0])


def write_face_model(folder: Path, model: str, outputs: int) -> None:
    weights = face_weights(outputs, seed=outputs)
    tensors = [{"name": name, "shape": values.shape, "dtype": "float32"} for name, values in weights.items()]
    manifest = [{"weights": tensors, "paths": [f"{model}.bin"]}]
    (folder / f"{model}-weights_manifest.json").write_text(json.dumps(manifest))
    (folder / f"{model}.bin").write_bytes(b"".join(values.tobytes() for values in weights.values()))


def test_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo("inputs.face_images"), "CROPS", 2)
    generator = np.random.default_rng(0)
    for folder in ("face-api/model", "face-api/demo", "scikit-image/skimage/data"):
        (tmp_path / folder).mkdir(parents=True)
    write_face_model(tmp_path / "face-api" / "model", "face_expression_model", 7)
    write_face_model(tmp_path / "face-api" / "model", "face_landmark_68_model", 136)
    for name in zoo("inputs.face_images").FOUND:
        small = Image.fromarray(generator.integers(255, size=(30, 40, 3), dtype=np.uint8))
        small.resize((1920, 1280), Image.Resampling.NEAREST).save(tmp_path / "face-api" / "demo" / name)
    np.save(tmp_path / "scikit-image" / "skimage" / "data" / "lfw_subset.npy", generator.random((200, 25, 25)))
    entry = zoo("faces").load(tmp_path)
    check(entry)
    assert entry.probe.shape == (13 * 2 + 60 * 3, 3, 112, 112) and entry.held_out.shape == (
        9 * 2 + 40 * 3,
        3,
        112,
        112,
    )
    assert -0.5 < entry.probe.min() < -0.3 and 0.4 < entry.probe.max() < 0.6


def write_text_model(path: Path, weights: dict[str, torch.Tensor]) -> None:
    model: dict[str, Any] = {}
    content = {"vocabs/shape.gz": gzip.compress(b"<pad>\nRU_xx\nRU_Xx\nRU_x\nPUNCT_.")}
    content["vocabs/word.gz"] = gzip.compress("дом\nкот\n<unk>\n<pad>".encode())
    for number, (name, values) in enumerate(weights.items()):
        node = model
        for part in name.split("."):
            node = node.setdefault(part, {})
        node |= {"shape": values.shape, "dtype": "float32", "array": number}
        content[f"arrays/{number}.bin"] = values.numpy().tobytes()
    archive(path, content | {"model.json": json.dumps(model).encode()})


def test_natasha(tmp_path: Path) -> None:
    assert SHAPES == 5, "as many as the shapes that are written below"
    data = tmp_path / "natasha" / "natasha" / "data"
    text = tmp_path / "fortunes-ru" / "usr" / "share" / "games" / "fortunes" / "ru"
    for folder in (data / "model", data / "emb", text):
        folder.mkdir(parents=True)
    for seed, task in enumerate(("ner", "morph", "syntax")):
        weights = text_weights(seed, syntax=task == "syntax")
        write_text_model(data / "model" / f"slovnet_{task}_news_v1.tar", weights)
    generator = np.random.default_rng(0)
    stored = np.array([4, 300, 100, 256], np.uint32).tobytes() + generator.bytes(4 * 100)
    stored += generator.normal(size=(100, 256, 3)).astype(np.float32).tobytes()
    archive(data / "emb" / "navec_news_v1_1B_250K_300d_100q.tar", {"pq.bin": stored})
    for file, word in (("a", "дом"), ("b", "кот")):
        lines = [f"{' '.join([word] * i)} Лес {' '.join([word] * (14 - i))}." for i in range(1, 5)]
        (text / file).write_text("\n%\n".join([*lines, "Общее " + "лес " * 14 + "."]), encoding="utf-8")
    entry = zoo("natasha").load(tmp_path)
    check(entry)
    assert [x.shape for x in entry.probe] == [(5, 16, 300), (5, 16)]
    assert [x.shape for x in entry.held_out] == [(4, 16, 300), (4, 16)]  # without the sentence that both files have


def test_tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tesseract = zoo("tesseract")
    monkeypatch.setattr(tesseract, "LINES", 5)
    fonts = tmp_path / "fonts-liberation" / "usr" / "share" / "fonts" / "truetype" / "liberation"
    fonts.mkdir(parents=True)
    for font in zoo("inputs.text_lines").fonts_in(fonts):
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font)
    for seed, (task, words) in enumerate(tesseract.WORDS.items()):
        (tmp_path / words).parent.mkdir(parents=True)
        (tmp_path / words).write_text("\n".join("a" * length for length in range(2, 9)))
        file = tmp_path / f"tesseract-ocr-{task}" / "any" / f"{task}.traineddata"
        file.parent.mkdir(parents=True)
        file.write_bytes(traineddata(network_bytes(made(seed, 4), int8=True)).replace(b"Joined", b"A     "))
    entry = tesseract.load(tmp_path)
    check(entry)
    assert entry.probe.shape == entry.held_out.shape == (20, 1, 36, 360)
    for labels in entry.labels.values():
        assert len(labels) == 20 and ((labels >= 0).any(1)).sum() == 5
        assert set(labels.unique().tolist()) <= {-1, 0, 1, 3}  # filling, space, a, A


def test_entries_are_modules_and_others_are_refused(tmp_path: Path) -> None:
    package = zoo()
    assert all(callable(zoo(name).load) for name in package.ENTRIES)
    with pytest.raises(ValueError, match="unknown entry: 'elsewhere'"):
        package.load("elsewhere", tmp_path)


def test_archives_are_unpacked_without_their_outer_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/model/x.bin")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    zoo("fetch").unpack_tar(tmp_path / "a.tgz", tmp_path / "to")
    assert (tmp_path / "to" / "model" / "x.bin").read_bytes() == b"abc"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", "to"}
