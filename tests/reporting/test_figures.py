"""Files that the renderers write; whether they are good pictures is judged by eye."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import SearchResult, Tree
from branchnet.inference.latency import Latency
from branchnet.reporting.plots.affinity_plot import affinity_plot_data, draw_affinity
from branchnet.reporting.plots.figures import inline_svg, save_figure, shorten
from branchnet.reporting.plots.front_plot import draw_front, front_plot_data
from branchnet.reporting.plots.latency_plot import draw_latency, latency_plot_data
from branchnet.reporting.plots.metric_plot import draw_metrics, metric_plot_data
from branchnet.reporting.plots.samples_plot import TaskSamples, draw_samples, samples_plot_data
from branchnet.reporting.plots.tree_plot import draw_tree, tree_plot_data

TASKS = ("plain", "$x_1$", "<b>&", "ünï")


def figure():
    return draw_tree(tree_plot_data(Tree.grouped([TASKS[:2], TASKS[2:]], 3), stage_params=[1, 2, 3]))


def test_png_and_svg_are_written_and_repeatable(tmp_path):
    for suffix in ("png", "svg"):
        first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        save_figure(figure(), first)
        save_figure(figure(), second)
        assert first.read_bytes() == second.read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 200
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        save_figure(figure(), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_the_users_style_is_put_back():
    with matplotlib.rc_context({"font.size": 31.0}):
        figure()
        assert matplotlib.rcParams["font.size"] == 31.0


def test_task_names_are_shown_as_they_are():
    root = ET.fromstring(inline_svg(figure(), "p", "a tree")[0].replace("xlink:", ""))
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert set(TASKS) <= texts


def test_inline_svg_follows_the_page_and_keeps_its_ids_apart():
    drawn = draw_affinity(affinity_plot_data(Affinity([*"ab"], [*"x"], np.array([[[1, 0.5], [0.5, 1]]]))))
    first, second = inline_svg(drawn, "one", 'say "hi"')[0], inline_svg(drawn, "two", "")[0]
    assert "var(--ink)" in first
    assert 'aria-label="say &quot;hi&quot;"' in first
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', first))
    assert used <= ids[0]


def test_shorten_keeps_the_end_and_cuts_at_a_dot():
    assert shorten("layer1") == "layer1"
    assert shorten("features.encoder.blocks.11", 12) == "…blocks.11"
    assert shorten("a" * 30, 5) == "…aaaa"


def one_result(cost):
    tree = Tree.shared(["only"], 1)
    return SearchResult(tree, cost, 5.0, cost, True, "exact", "", "mean-max", "params", 5.0)


DEGENERATE = {
    "tree of one task and one stage": lambda: draw_tree(tree_plot_data(Tree.shared(["only"], 1))),
    "tree without parameters": lambda: draw_tree(tree_plot_data(Tree.separate(["a", "b"], 2), stage_params=[0, 0])),
    "affinity of one task": lambda: draw_affinity(affinity_plot_data(Affinity(["a"], ["x"], np.ones((1, 1, 1))))),
    "constant affinity": lambda: draw_affinity(affinity_plot_data(Affinity(["a", "b"], ["x"], np.ones((1, 2, 2))))),
    "front of one tree": lambda: draw_front(front_plot_data([one_result(0.0)], 5.0, chosen=one_result(0.0))),
    "no change": lambda: draw_metrics(metric_plot_data({"a": 1.0}, {"v": {"a": 1.0}}, {"a": False})),
    "one latency": lambda: draw_latency(latency_plot_data({"a": Latency((0.1,))})),
    "depth without truth": lambda: draw_samples(
        samples_plot_data(np.zeros((1, 2, 2)), [TaskSamples("d", "depth", np.full((1, 2, 2), np.nan))])
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_data_can_be_drawn(case, tmp_path):
    save_figure(DEGENERATE[case](), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert len(image.convert("L").getcolors()) > 1


@pytest.mark.parametrize("n_tasks", [3, 7, 40])
def test_every_task_is_named_in_the_drawings(n_tasks):
    tasks = [f"task {i}" for i in range(n_tasks)]
    values = np.eye(n_tasks)[None]
    drawings = {
        "tree": draw_tree(tree_plot_data(Tree.separate(tasks, 1))),
        "affinity": draw_affinity(affinity_plot_data(Affinity(tasks, ["x"], values))),
    }
    for drawing in drawings.values():
        svg = inline_svg(drawing, "p", "")[0]
        assert all(f">{task}<" in svg for task in tasks)


def test_nothing_in_a_picture_is_hidden(tmp_path):
    """Control characters are no XML at all; others would turn the direction of what follows."""
    task, shown = "a\x1b\u202eb\x00", r"a\u001b\u202eb\u0000"
    tree = Tree([task, "c"], [[[task, "c"]], [[task], ["c"]]])
    values = np.full((2, 2, 2), 0.5)
    affinity = Affinity([task, "c"], [task, "y"], values)
    latency = {task: Latency((0.1, 0.2)), "separate": Latency((0.3,))}
    drawn = [
        draw_tree(tree_plot_data(tree, stage_params=[1, 2], locations=[task, "y"])),
        draw_affinity(affinity_plot_data(affinity)),
        draw_latency(latency_plot_data(latency)),
    ]
    for number, picture in enumerate(drawn):
        save_figure(picture, tmp_path / f"{number}.svg")
        svg, _ = inline_svg(picture, "x", task)
        for text in ((tmp_path / f"{number}.svg").read_text("utf-8"), svg):
            assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
            ET.fromstring(text.replace("xlink:href", "href"))  # HTML knows the prefix
        assert shown in svg
