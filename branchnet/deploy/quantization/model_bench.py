"""The float model and everything that is made of it once: ranges of activations, its outputs, its time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from branchnet.builder import BranchedNetwork
from branchnet.data.collation import gather, length
from branchnet.deploy.exporting import write_model
from branchnet.deploy.flat_outputs import restoring
from branchnet.deploy.format_writers import Dynamic
from branchnet.deploy.model_card import input_names
from branchnet.deploy.onnx_files.onnx_network import OnnxNetwork, Restore
from branchnet.deploy.quantization.judged_losses import OutputLosses
from branchnet.deploy.quantization.node_quantizer import MODES, Mode, NodeQuantizer, as_arrays
from branchnet.deploy.quantization.quantized import NodeCost
from branchnet.inference import compare_latency, measure_latency, prepare
from branchnet.stages import flat_example
from branchnet.stitching.output_distances import OutputKind, kind_of
from branchnet.utils.progress import progress_bar

NODE_ROUNDS = 9


@dataclass(frozen=True, eq=False)
class ModelBench:
    """Everything that is made once: the float model, its ranges of activations and its outputs.

    Attributes:
        branched: the network.
        quantizer: writes models.
        float_content: the float model.
        reference: it, loaded.
        losses: its outputs for the inputs that judge.
        restore: puts tensors into the forms of outputs.
        one_input: what latencies are measured on.
        seconds: of a call of the float model.
    """

    branched: BranchedNetwork
    quantizer: NodeQuantizer
    float_content: bytes
    reference: OnnxNetwork
    losses: OutputLosses
    restore: Restore
    one_input: Any
    seconds: float

    @classmethod
    def of(
        cls,
        branched: BranchedNetwork,
        calibration: list[Any],
        judged: list[Any],
        kinds: Mapping[str, OutputKind],
        dynamic: Dynamic,
    ) -> ModelBench:
        """Export the network, calibrate, and run the float model on the inputs that judge.

        Args:
            branched: the network.
            calibration: batches from which the ranges of activations are taken.
            judged: batches on which outputs are compared.
            kinds: how, by task; others as their outputs show.
            dynamic: see `branchnet.export`.

        Raises:
            BuildError, AffinityError: as `quantize`.
        """
        import onnx

        example = gather(calibration[0], slice(0, 2)) if dynamic else calibration[0]
        with tempfile.TemporaryDirectory(prefix="branchnet-") as folder:
            file = Path(folder) / "float.onnx"
            prepared = prepare(branched, fold_batchnorm=True, example=example)
            write_model(file, prepared, example, "onnx", dynamic=dynamic, original=branched)
            model = onnx.load(file)
        names = input_names(example)
        whole = [batch for batch in calibration if dynamic or length(batch) == length(example)]
        quantizer = NodeQuantizer(model, [as_arrays(names, flat_example(batch)) for batch in whole])
        content = quantizer.write({})
        restore = restoring(branched, example)
        reference = OnnxNetwork(content, branched.tasks, restore=restore)
        with torch.no_grad():
            outputs = branched(example)
        found = {task: kinds.get(task) or kind_of(output) for task, output in outputs.items()}
        judges = [batch for batch in judged if dynamic or length(batch) == length(example)]
        one_input = gather(example, slice(0, 1)) if dynamic else example
        losses = OutputLosses(reference, judges, found)
        seconds = measure_latency(reference, one_input, repeats=NODE_ROUNDS).median
        return cls(branched, quantizer, content, reference, losses, restore, one_input, seconds)

    def network(self, content: bytes) -> OnnxNetwork:
        """Load a model, to be called as the branched network is.

        Args:
            content: the file.
        """
        form = self.branched.interface
        return OnnxNetwork(content, self.branched.tasks, restore=self.restore, interface=form)

    def node_costs(self) -> Iterator[NodeCost]:
        """What each node costs each of its tasks when it alone is quantised, in both ways."""
        nodes = list(self.branched.members())
        with progress_bar("quantise nodes", 2 * len(nodes)) as advance:
            for node in nodes:
                for mode in MODES[1:]:
                    content = self.quantizer.write({node.id: mode})
                    made = self.network(content)
                    losses = self.losses.of(made, node.tasks)
                    seconds = self._saved(made) if mode == "int8" else 0.0
                    saved = len(self.float_content) - len(content)
                    yield NodeCost(node.id, mode, node.tasks, losses, saved, seconds)
                    advance()

    def _saved(self, made: OnnxNetwork) -> float:
        """Seconds that three quarters of the rounds save at least: noise alone saves none."""
        found = compare_latency({"float": self.reference, "int8": made}, self.one_input, repeats=NODE_ROUNDS)
        return float(np.quantile(np.subtract(found["float"].samples, found["int8"].samples), 0.25))

    def measured(self, modes: Mapping[str, Mode]) -> dict[str, float]:
        """What every task loses with the whole network in these modes.

        Args:
            modes: by node; others are float.
        """
        return self.losses.of(self.network(self.quantizer.write(modes)), self.branched.tasks)
