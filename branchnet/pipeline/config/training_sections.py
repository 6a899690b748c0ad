"""The sections of a config that say how networks are trained, and where labels come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from branchnet.utils.document_keys import Keys

FactoryName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Count = Annotated[int, Field(ge=1)]
PeakRate = Annotated[float, Field(gt=0)] | Literal["auto"]


class StrictSection(BaseModel):
    """A part of a config: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingSection(StrictSection):
    """What `branchnet.fit` and `branchnet.distill` have in common; they say what each setting means.

    Attributes:
        every: steps between two measurements on held-out samples.
        keep: which state is kept.
        patience: end where the best state is so many measurements ago.
        schedule: of the learning rate.
        weights: of the tasks' losses: the name of a weighting, or a number for each task.
        divide_rate: divide a node's rate by the number of tasks that it serves.
        precision: of forward passes; `bf16` and `fp16` need the extra `train`.
        accumulate: batches for each update.
        clip: largest norm of the gradient; null for none.
        compile: run the network through torch.compile.
        ema: decay of an average of the weights that is measured and kept; null for none.
    """

    every: Count | None = None
    keep: Literal["best", "last"] = "best"
    patience: Count | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    weights: str | dict[str, float] | None = None
    divide_rate: bool = False
    precision: Literal["32", 32, "bf16", "fp16"] = "32"
    accumulate: Count = 1
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    def given(self) -> dict[str, Any]:
        """The settings that are there, as `fit` and `distill` take them."""
        found = self.model_dump(exclude_unset=True)
        return found | ({"precision": str(found["precision"])} if "precision" in found else {})


class DistillSection(TrainingSection):
    """How whole networks are distilled; `branchnet.distill` says what each setting means.

    Attributes:
        steps: batches; 0 leaves networks as they are built. In place of the config's `steps`.
        batch_size: images in a batch. In place of the config's `batch_size`.
        learning_rate: peak rate, or `auto`. In place of the config's `learning_rate`.
        match: what is matched: outputs, features at branch points, or both.
        temperature: that logits are divided by.
    """

    steps: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    learning_rate: PeakRate | None = None
    match: Literal["outputs", "features", "both"] = "outputs"
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @property
    def in_place(self) -> dict[str, Any]:
        """The settings that stand for fields of the config itself."""
        found = {name: getattr(self, name) for name in FLAT}
        return {name: value for name, value in found.items() if value is not None}

    def given(self) -> dict[str, Any]:
        """The settings that are there and stand for no field of the config itself."""
        return {name: value for name, value in super().given().items() if name not in FLAT}


FLAT = ("steps", "batch_size", "learning_rate")
"""Settings of the section `distill` that are fields of the config itself, too."""


class FitSection(TrainingSection):
    """How networks are trained on labels; `branchnet.fit` says what each setting means.

    Attributes:
        steps: updates of the weights.
        batch_size: samples in a batch.
        learning_rate: peak rate, or `auto`.
    """

    steps: Count = 1000
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: PeakRate = "auto"


class SourceSection(StrictSection):
    """Samples with labels: exactly one of `table` and `factory`.

    Attributes:
        table: a YAML file that describes a folder or table, see `branchnet.data.LabelledTable`.
        split: one of the splits that it names.
        factory: `package.module:function`, called without arguments; returns a data set of (input, {task: label}) that
            is read by number.
    """

    table: Path | None = None
    split: str | None = None
    factory: FactoryName | None = None

    def problems(self) -> list[tuple[Keys, str]]:
        """Not exactly one source, or a split of a function."""
        if (self.table is None) == (self.factory is None):
            return [((), "needs either a table or a factory")]
        if self.factory is not None and self.split is not None:
            return [(("split",), "belongs to a table; a factory returns one split")]
        return []


LabelSource = SourceSection | FactoryName
"""A section, or the name of a function alone."""
