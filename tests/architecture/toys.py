"""Random architectures for property tests."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from branchnet.builder.weights.donors import choose_donors
from branchnet.clustering import Tree, random_tree
from branchnet.specification.architecture import Architecture
from branchnet.specification.nested_tree import nest
from branchnet.utils.visible_text import invisible

AWKWARD = ["no", "yes", "y", "null", "~", "true", "1e-3", "12:30", "0x1f", "010", ".inf", "2001-01-01", "<<", "=", "1"]
AWKWARD += [
    " ",
    "a b ",
    "a: b",
    "a #b",
    "- a",
    "[a]",
    "{a}",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "'",
    '"',
    "\\",
    "a\nb",
    "\t",
]
AWKWARD += ["é", "名前", "😀", "\x00", "\x7f", "\x85", "until", "branches", "tree", "x" * 300]
NAMES = (
    st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs", "Cf", "Zl", "Zp"]), min_size=1)
).filter(lambda name: not invisible(name))
NUMBERS = st.integers(0, 10**12) | st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 10**15)
OPERATORS = st.lists(st.sampled_from(["_fft_r2c", "linalg_inv_ex"]), min_size=1, max_size=2)
COST = st.fixed_dictionaries(
    {"params": COUNTS, "flops": COUNTS}, optional={"cut_bytes": COUNTS, "uncounted": OPERATORS}
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["depth", "num_classes", "act_layer", "y"]),
    st.none() | st.booleans() | st.integers() | st.sampled_from(["gelu", "no", "1e-3"]) | st.lists(st.integers()),
)
CONSTRUCTORS = st.sampled_from(
    ["torchvision:resnet18", "timm:vit_small", "transformers:bert", "branchnet:scene_network"]
)
INPUT = st.fixed_dictionaries(
    {"shape": st.lists(st.integers(0, 512), max_size=3), "dtype": st.sampled_from(["float32", "int64"])},
    optional={"low": st.integers(-(2**63), 0), "high": st.integers(0, 2**63 - 1)},
)


@st.composite
def trees(draw: st.DrawFn, max_tasks: int = 7, max_depth: int = 5) -> Tree:
    tasks = draw(st.lists(NAMES, min_size=1, max_size=max_tasks, unique=True))
    return random_tree(tasks, draw(st.integers(1, max_depth)), seed=draw(st.integers(0, 2**31)))


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    tree = draw(trees())
    locations = draw(st.lists(NAMES, min_size=tree.depth, max_size=tree.depth, unique=True))
    inputs = draw(st.none() | INPUT | st.lists(INPUT, min_size=1, max_size=3))
    if isinstance(inputs, list) and draw(st.booleans()):
        inputs = [{**tensor, "name": f"input {number}"} for number, tensor in enumerate(inputs)]
    network = st.fixed_dictionaries({"constructor": CONSTRUCTORS}, optional={"arguments": ARGUMENTS})
    costs = st.fixed_dictionaries(
        {"stages": st.fixed_dictionaries(dict.fromkeys(locations, COST))},
        optional={"heads": st.fixed_dictionaries(dict.fromkeys(tree.tasks, COST))},
    )
    search = st.fixed_dictionaries(
        {},
        optional={
            "budget": st.sampled_from(["60% params", "25e6 params", "4 GMACs", "4 ms"]),
            "objective": NAMES,
            "cost": NUMBERS,
            "size": NUMBERS,
            "lower_bound": NUMBERS,
            "proven": st.booleans(),
            "probe_hash": NAMES,
        },
    )
    return Architecture.create(
        description=draw(st.none() | NAMES),
        tasks=tree.tasks,
        input=inputs,
        networks=draw(st.dictionaries(st.sampled_from(tree.tasks), network)),
        locations=locations,
        tree=nest(tree, locations, choose_donors(tree) if draw(st.booleans()) else None),
        costs=draw(st.none() | costs),
        search=draw(st.none() | search),
        versions=draw(st.dictionaries(NAMES, NAMES, max_size=3)),
    )


def shuffled(value: object, source: random.Random) -> object:
    """Return the same content with the keys of every mapping in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        source.shuffle(items)
        return {key: shuffled(item, source) for key, item in items}
    return [shuffled(item, source) for item in value] if isinstance(value, list) else value
