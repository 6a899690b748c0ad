"""Weights stored as int8: within half a step, run by ONNX's own reference implementation, and a quarter the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from branchnet.deploy.quantization.weight_rounding import round_weights  # noqa: E402


def model_of(operator: str, weight: Any, x: Any, **attributes: Any) -> Any:
    from onnx import helper, numpy_helper

    inputs = ["w", "x"] if operator == "Gather" else ["x", "w"]
    node = helper.make_node(operator, inputs, ["y"], name="only", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", 1, [f"size{number}" for number in range(max(2, x.ndim))])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run(model: Any, x: Any) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"x": x})[0]


CASES = {
    # the weight, the input, attributes, the axes over which one scale is taken
    "Conv": ((8, 6, 3, 3), (2, 6, 5, 5), {}, (1, 2, 3)),
    "ConvTranspose": ((6, 8, 3, 3), (2, 6, 5, 5), {}, (0, 2, 3)),
    "Gemm": ((16, 32), (3, 32), {"transB": 1}, (1,)),
    "Gemm not transposed": ((32, 16), (3, 32), {}, (0,)),
    "MatMul": ((32, 16), (3, 32), {}, (0,)),
    "Gather": ((40, 16), (3,), {}, (1,)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_every_weight_is_within_half_a_step_of_its_channel(case: str) -> None:
    from onnx import numpy_helper

    shape, size, attributes, axes = CASES[case]
    generator = np.random.default_rng(0)
    weight = (
        generator.normal(size=shape) * generator.uniform(0.01, 10, size=shape[:1] + (1,) * (len(shape) - 1))
    ).astype(np.float32)
    x = np.array([0, 39, 7]) if case == "Gather" else generator.normal(size=size).astype(np.float32)
    operator = case.split()[0]
    model = model_of(operator, weight, x, **attributes)
    before, length = run(model, x), len(model.SerializeToString())
    round_weights(model, {"only"})
    onnx.checker.check_model(model)
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert stored["w.int8"].dtype == np.int8
    restored = stored["w.int8"] * stored["w.scale"]
    step = np.abs(weight).max(axis=axes, keepdims=True) / 127
    assert (np.abs(restored - weight) <= step * 0.5001).all()
    assert len(model.SerializeToString()) < length - 2 * weight.size
    again = run(model_of(operator, restored, x, **attributes), x)
    np.testing.assert_allclose(run(model, x), again, rtol=1e-5, atol=1e-5)
    assert np.abs(again - before).max() > 0


def test_what_another_operator_reads_stays() -> None:
    from onnx import helper

    weight = np.ones((32, 32), np.float32)
    model = model_of("MatMul", weight, np.ones((1, 32), np.float32))
    model.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["z"], name="other"))
    before = model.SerializeToString()
    round_weights(model, {"only"})
    assert model.SerializeToString() == before
    round_weights(model, {"only", "other"})
    assert {one.name for one in model.graph.initializer} == {"w.int8", "w.scale"}


@pytest.mark.parametrize("weight", [np.full((4, 4), 2.0), np.full((32, 32), np.nan)])
def test_small_ones_and_those_that_are_not_finite_stay(weight: Any) -> None:
    model = model_of("MatMul", weight.astype(np.float32), np.ones((1, len(weight)), np.float32))
    before = model.SerializeToString()
    round_weights(model, {"only"})
    assert model.SerializeToString() == before


def test_channels_of_zeros_stay_zeros() -> None:
    weight = np.zeros((32, 32), np.float32)
    weight[:, 0] = 3
    x = np.ones((1, 32), np.float32)
    model = model_of("MatMul", weight, x)
    round_weights(model, {"only"})
    np.testing.assert_allclose(run(model, x), [[96.0] + [0.0] * 31], rtol=1e-6)
