"""What quantisation gave: a network that runs, what every node cost every task, and both sides of one measurement."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork
from branchnet.deploy.quantization.node_quantizer import Mode
from branchnet.inference.latency import Latency, ratio_interval
from branchnet.utils.files import atomic_write


@dataclass(frozen=True)
class NodeCost:
    """What the network loses and saves when this node alone is quantised.

    Attributes:
        node: id of the node or head.
        mode: how it is quantised.
        tasks: the tasks that it serves.
        losses: by task what the output loses: 0 equal to the float network's, 1 as bad as a constant answer.
        saved_bytes: by how many the file is smaller; negative where scales take more than they save.
        saved_seconds: by how much one call is shorter in three quarters of the rounds at least, measured in turns; 0
            for weights alone.
    """

    node: str
    mode: Mode
    tasks: tuple[str, ...]
    losses: Mapping[str, float]
    saved_bytes: int
    saved_seconds: float


@dataclass(frozen=True, eq=False)
class Quantized:
    """A branched network with int8 nodes in ONNX Runtime, called as the network is.

    Attributes:
        tasks: the network's tasks.
        modes: by id of node or head `"float"`, `"weights"` (int8 in the file, float in memory) or `"int8"`.
        costs: what each node costs each task alone, in every mode.
        losses: by task what the whole network loses, measured on inputs that nothing was calibrated on.
        taken_back: nodes that were chosen and went back to another mode: losses do not quite add up, and int8 that
            saves time in single nodes may not in the whole network.
        file_bytes: size of the file.
        float_bytes: size of the float network's file.
        latency: of one call on the example.
        float_latency: of the float network in ONNX Runtime, measured in turns with it.
        content: the ONNX file.
    """

    tasks: tuple[str, ...]
    modes: Mapping[str, Mode]
    costs: tuple[NodeCost, ...]
    losses: Mapping[str, float]
    taken_back: tuple[str, ...]
    file_bytes: int
    float_bytes: int
    latency: Latency
    float_latency: Latency
    content: bytes
    _network: OnnxNetwork
    _choose: Callable[..., Quantized]

    def __call__(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> dict[str, Any]:
        """Compute the outputs of `tasks`, all by default; what no such task needs is not run.

        Args:
            *inputs: as of `BranchedNetwork.forward`.
            tasks: those wanted.
            **named: in place of `inputs`, inputs by name.

        Returns:
            outputs by task.

        Raises:
            BuildError: unknown tasks, no input, or one of another form than the network takes.
        """
        return self._network(*inputs, tasks=tasks, **named)

    def choose(self, **limits: Any) -> Quantized:
        """Choose again under other limits, from the costs that were measured; the whole network is measured again.

        Args:
            **limits: `max_loss`, `max_bytes` and `goal`, as `branchnet.quantize` takes them.

        Returns:
            the network under these limits.

        Raises:
            BuildError, BudgetError: as `branchnet.quantize`.
        """
        return self._choose(**limits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX file; `branchnet.deploy.load_onnx` and every ONNX runtime load it.

        Args:
            path: the file.
        """
        with atomic_write(path) as temporary:
            temporary.write_bytes(self.content)

    @property
    def speedup(self) -> tuple[float, float, float]:
        """How many times as fast as the float network it is: the median over rounds, and its 95% interval."""
        return ratio_interval(self.float_latency, self.latency)

    @property
    def smaller(self) -> float:
        """How many times as large the float network's file is."""
        return self.float_bytes / self.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Describe everything but the file.

        Returns:
            plain data, as JSON holds them; times in milliseconds, losses as shares of a constant answer's.
        """
        median, low, high = self.speedup
        return {
            "modes": dict(self.modes),
            "costs": [vars(cost) | {"losses": dict(cost.losses), "tasks": list(cost.tasks)} for cost in self.costs],
            "losses": dict(self.losses),
            "taken_back": list(self.taken_back),
            "bytes": {"quantised": self.file_bytes, "float": self.float_bytes},
            "milliseconds": {
                "quantised": [1000 * seconds for seconds in self.latency.samples],
                "float": [1000 * seconds for seconds in self.float_latency.samples],
            },
            "speedup": {"median": median, "low": low, "high": high},
        }

    def __str__(self) -> str:
        """What each node cost each task, and what came of it."""
        median, low, high = self.speedup
        lines = ["node: mode; loss of each task with this node alone, int8 / weights; bytes saved"]
        by_node = {(cost.node, cost.mode): cost for cost in self.costs}
        for node, mode in self.modes.items():
            computed, stored = by_node[node, "int8"], by_node[node, "weights"]
            lost = ", ".join(f"{t} {computed.losses[t]:.2g} / {stored.losses[t]:.2g}" for t in computed.tasks)
            saved = 0 if mode == "float" else by_node[node, mode].saved_bytes
            back = " (taken back)" if node in self.taken_back else ""
            lines.append(f"{node}: {mode}{back}; {lost}; {saved:,}")
        lost = ", ".join(f"{task} {loss:.2g}" for task, loss in self.losses.items())
        verdict = "" if low > 1 else ": not faster here" if high >= 1 else ": slower here"
        return "\n".join(
            [
                *lines,
                f"all together, measured: {lost}",
                f"{self.float_bytes:,} bytes -> {self.file_bytes:,}: {self.smaller:.2f} times smaller",
                f"{1000 * self.float_latency.median:.2f} ms -> {1000 * self.latency.median:.2f} ms: {median:.2f} times "
                f"as fast [{low:.2f}, {high:.2f}]{verdict}",
            ]
        )
