"""Sections of a config: distillation in detail, comparisons, and what images the networks want."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import branchnet
from branchnet.cli.loading import changed
from branchnet.errors import SpecError
from branchnet.pipeline.config.preprocessing import enlarged, preprocessing
from branchnet.pipeline.config.run_config import RunConfig, RunOptions
from branchnet.pipeline.config.training_sections import DistillSection, FitSection
from branchnet.pipeline.labelled_run.single_training import fit_settings

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def config(constructors: tuple[str, str] = ("branchnet:scene_network",) * 2, **fields: Any) -> RunConfig:
    networks = {task: {"constructor": made} for task, made in zip("ab", constructors, strict=True)}
    for task in networks:
        networks[task] |= fields.pop(task, {})
    return RunConfig.model_validate({"networks": networks, "images": {"folder": "photos"}} | fields)


def test_settings_of_sections_are_those_of_distill_and_fit() -> None:
    for section, function in ((DistillSection, branchnet.distill), (FitSection, branchnet.fit)):
        known = {name: one.default for name, one in inspect.signature(function).parameters.items()}
        for name, field in section.model_fields.items():
            assert name in known
            if name not in ("steps", "batch_size", "learning_rate"):
                assert field.default == known[name], name


def test_the_section_stands_for_fields_outside_and_an_option_for_both() -> None:
    made = config(distill={"steps": 7, "learning_rate": 0.01, "clip": None, "precision": 32})
    assert (made.steps, made.learning_rate, made.batch_size) == (7, 0.01, 32)
    assert made.distillation == {"clip": None, "precision": "32"}
    assert RunOptions.checked(**made.options()).steps == 7
    assert RunOptions.checked(**made.options()).distillation == made.distillation
    other = changed(made, steps=3, seed=5)
    assert (other.steps, other.learning_rate, other.seed) == (3, 0.01, 5)
    assert changed(config(steps=4), steps=3).steps == 3
    assert fit_settings(config(fit={"clip": 1.0}))["clip"] == 1.0
    assert fit_settings(config())["steps"] == inspect.signature(branchnet.fit).parameters["steps"].default
    with pytest.raises(SpecError, match="learning-rate"):
        changed(made, learning_rate=-1.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"compare": True}, ("shared", "random")),
        ({"baselines": ["random"]}, ("random",)),
        ({"compare": True, "baselines": ["shared"]}, ("shared",)),
        ({"baselines": []}, ()),
    ],
)
def test_baselines_are_trained_where_they_are_asked_for(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert config(**fields).compared_with == expected
    assert RunOptions.checked(**config(**fields).options()).compared_with == expected


def test_what_the_config_says_of_images_counts() -> None:
    networks = {"a": nn.Identity(), "b": nn.Identity()}
    plain = preprocessing(config(), networks)
    assert (plain.size, plain.mean, plain.std, plain.note) == (224, (0.0,) * 3, (1.0,) * 3, "")
    made = preprocessing(config(a={"size": 64}, images={"folder": "photos", "mean": [0.5] * 3}), networks)
    assert (made.size, made.mean, made.std, made.note) == (64, (0.5,) * 3, (1.0,) * 3, "")
    with pytest.raises(SpecError, match="networks: a: size is 64, and networks: b: size 32; all networks see the same"):
        preprocessing(config(a={"size": 64}, b={"size": 32}), networks)


def test_networks_of_torchvision_and_timm_say_what_they_want() -> None:
    models = pytest.importorskip("torchvision.models")
    transforms = models.ResNet18_Weights.DEFAULT.transforms()
    assert {"mean": tuple(transforms.mean), "std": tuple(transforms.std)} == IMAGENET
    names = ("torchvision:resnet18", "torchvision:resnet18")
    networks = {"a": nn.Identity(), "b": nn.Identity()}
    found = preprocessing(config(names), networks)
    assert (found.size, found.mean, found.std) == (transforms.crop_size[0], IMAGENET["mean"], IMAGENET["std"])
    assert found.note.count("from torchvision") == 3
    stated = preprocessing(config(names, images={"folder": "photos", "size": 64}), networks)
    assert (stated.size, stated.mean) == (64, IMAGENET["mean"])
    half = preprocessing(config(("torchvision:resnet18", "branchnet:scene_network")), networks)
    assert (half.size, half.mean, half.note) == (224, (0.0,) * 3, "")  # nobody knows what the other one wants
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(SpecError, match=r"networks: a: mean is \[0.485.*networks: b: mean \[0.5"):
        preprocessing(config(("torchvision:resnet18", "timm:vit_tiny_patch16_224")), {"a": nn.Identity(), "b": vit})


@pytest.mark.parametrize(
    ("height", "width", "size", "said"), [(40, 64, None, True), (40, 64, 64, False), (300, 224, None, False)]
)
def test_images_that_are_enlarged_unasked_are_named(
    height: int, width: int, size: int | None, said: bool, tmp_path: Path
) -> None:
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (width, height)).save(tmp_path / "photos" / "a.png")
    np.savez(tmp_path / "first.npz", images=np.zeros((2, 3, height, width), np.uint8))
    np.savez(tmp_path / "last.npz", images=np.zeros((2, height, width, 3), np.uint8))
    for source in ({"folder": "photos"}, {"npz": "first.npz"}, {"npz": "last.npz"}):
        settings = config(images=source | ({} if size is None else {"size": size}))
        done = preprocessing(settings, {"a": nn.Identity(), "b": nn.Identity()})
        text = enlarged(settings, tmp_path, done)
        assert bool(text) is said and (not said or f"{height} x {width} pixels and is enlarged to 224 x 224" in text)
