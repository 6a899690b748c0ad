"""Tiny made copies of public data sets, written in their layouts from what their own documentation says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 12, 16


def picture(path: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
    """Write a picture; as JPEG or PNG, by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)


def pixels(path: Path, values: npt.NDArray[np.integer]) -> None:
    """Write numbers as an image of 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def cityscapes(root: Path) -> None:
    """Two images to train on, one to validate, one to test; upper half sky, lower half road, two cars."""
    places = [("train", "aachen", "000000_000019"), ("train", "bochum", "000000_000313")]
    places += [("val", "ulm", "000000_000019"), ("test", "bonn", "000000_000019")]
    for seed, (split, city, frame) in enumerate(places):
        base = f"{city}_{frame}"
        picture(root / "leftImg8bit" / split / city / f"{base}_leftImg8bit.png", seed)
        ids = np.full((HEIGHT, WIDTH), 23, np.uint8)
        ids[6:] = 7
        ids[0] = 3  # out of roi
        instances = ids.astype(np.uint16)
        instances[6:8, 2:6], ids[6:8, 2:6] = 26000, 26
        instances[8:10, 8:10], ids[8:10, 8:10] = 26001, 26
        instances[10, 0], ids[10, 0] = 29000, 29  # a caravan, which is not evaluated
        pixels(root / "gtFine" / split / city / f"{base}_gtFine_labelIds.png", ids)
        pixels(root / "gtFine" / split / city / f"{base}_gtFine_instanceIds.png", instances)
        disparity = np.full((HEIGHT, WIDTH), 2561, np.uint16)
        disparity[0] = 0
        pixels(root / "disparity" / split / city / f"{base}_disparity.png", disparity)
        camera = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2000.0}}
        text(root / "camera" / split / city / f"{base}_camera.json", json.dumps(camera))


def nyud(root: Path) -> None:
    """Two images to train on and one to validate."""
    text(root / "gt_sets" / "train.txt", "0001\n0002\n")
    text(root / "gt_sets" / "val.txt", "0003\n")
    for seed, name in enumerate(("0001", "0002", "0003")):
        generator = np.random.default_rng(seed)
        picture(root / "images" / f"{name}.jpg", seed)
        classes = generator.integers(0, 41, (HEIGHT, WIDTH)).astype(np.uint8)
        classes[0, 0], classes[0, 1] = 0, 40
        pixels(root / "segmentation" / f"{name}.png", classes)
        depth = generator.uniform(0.5, 9, (HEIGHT, WIDTH)).astype(np.float32)
        depth[1, 1] = 0
        normals = generator.normal(size=(HEIGHT, WIDTH, 3))
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        normals[2, 2] = 0
        for folder, array in (("depth", depth), ("normals", normals), ("edge", (depth > 5).astype(np.uint8))):
            (root / folder).mkdir(exist_ok=True)
            np.save(root / folder / f"{name}.npy", array)


def pascal(root: Path) -> None:
    """Two images to train on, with and without people, and one to validate; sizes differ."""
    text(root / "ImageSets" / "Context" / "train.txt", "2008_000001\n2008_000002\n")
    text(root / "ImageSets" / "Context" / "val.txt", "2008_000003\n")
    for seed, name in enumerate(("2008_000001", "2008_000002", "2008_000003")):
        height, width = HEIGHT + seed, WIDTH - seed
        picture(root / "JPEGImages" / f"{name}.jpg", seed, height, width)
        classes = np.zeros((height, width), np.uint8)
        classes[3:7, 4:9], classes[2] = 15, 255
        pixels(root / "semseg" / ("pascal-context" if seed else "VOC12") / f"{name}.png", classes)
        context = np.full((height, width), 360, np.uint16)  # sky
        context[3:7, 4:9] = 284  # person
        (root / "pascal-context" / "trainval").mkdir(parents=True, exist_ok=True)
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": context})
        normals = np.zeros((height, width, 3), np.uint8)
        normals[:] = (255, 128, 128)
        pixels(root / "normals_distill" / f"{name}.png", normals)
        salient = np.zeros((height, width), np.uint8)
        salient[3:7, 4:9], salient[0] = 200, 100
        pixels(root / "sal_distill" / f"{name}.png", salient)
        (root / "human_parts").mkdir(exist_ok=True)
        savemat(root / "human_parts" / f"{name}.mat", {"anno": annotation(name, height, width, person=name[-1] != "2")})


def annotation(name: str, height: int, width: int, *, person: bool) -> object:
    """What PASCAL-Part keeps of an image: its objects with class, class index, mask and parts."""
    mask = np.zeros((height, width), np.uint8)
    mask[3:7, 4:9] = 1
    head, arm = np.zeros_like(mask), np.zeros_like(mask)
    head[3, 4:9], arm[4, 4] = 1, 1
    parts = np.zeros((1, 2), [("part_name", object), ("mask", object)])
    parts[0, 0], parts[0, 1] = ("head", head), ("lhand", arm)
    objects = np.zeros((1, 1), [("class", object), ("class_ind", object), ("mask", object), ("parts", object)])
    objects[0, 0] = ("person" if person else "cat", 15 if person else 8, mask, parts)
    found = np.zeros((1, 1), [("imname", object), ("objects", object)])
    found[0, 0] = (name, objects)
    return found


def taskonomy(root: Path, *, nested: bool = False) -> None:
    """One building for each split, two views in the first, and one building that was not downloaded."""
    rows = ["id,train,val,test", "allensville,1,0,0", "beechwood,0,1,0", "coffeen,0,0,1", "absent,1,0,0"]
    text(root / "train_val_test_tiny.csv", "\n".join(rows) + "\n")
    for building, views in (
        ("allensville", ("10_view_2", "9_view_0")),
        ("beechwood", ("0_view_0",)),
        ("coffeen", ("1_view_1",)),
    ):
        for seed, view in enumerate(views):
            depth = np.full((HEIGHT, WIDTH), 1024, np.uint16)
            depth[0] = 65535
            normal = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
            normal[2:, :, 2] = 255
            classes = np.full((HEIGHT, WIDTH), 1, np.uint8)
            classes[0], classes[1] = 0, 17
            heat = np.full((HEIGHT, WIDTH), 65535, np.uint16)
            curvature = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
            curvature[..., 1] = 255
            for folder, domain, values in (
                ("depth_zbuffer", "depth_zbuffer", depth),
                ("depth_euclidean", "depth_euclidean", depth),
                ("normal", "normal", normal),
                ("segment_semantic", "segmentsemantic", classes),
                ("keypoints2d", "keypoints2d", heat),
                ("edge_texture", "edge_texture", heat // 2),
                ("principal_curvature", "principal_curvature", curvature),
            ):
                where = root / folder / ("taskonomy" if nested else "") / building
                pixels(where / f"point_{view}_domain_{domain}.png", values)
            where = root / "rgb" / ("taskonomy" if nested else "") / building
            picture(where / f"point_{view}_domain_rgb.png", seed)


def celeba(root: Path, *, folders: bool = False) -> None:
    """Three images, one a split, with two attributes."""
    anno, parts, images = ("Anno", "Eval", "Img") if folders else ("", "", "")
    names = ["000001.jpg", "000002.jpg", "000003.jpg"]
    lines = ["3", "Smiling Young ", "000001.jpg -1  1", "000002.jpg  1  1", "000003.jpg -1 -1"]
    text(root / anno / "list_attr_celeba.txt", "\n".join(lines) + "\n")
    text(root / parts / "list_eval_partition.txt", "".join(f"{name} {number}\n" for number, name in enumerate(names)))
    for seed, name in enumerate(names):
        picture(root / images / "img_align_celeba" / name, seed)
