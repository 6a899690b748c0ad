"""How a run goes, and the config of `branchnet run`: which networks, which images, which budget.

A config names Python factories, which are imported and called: it is trusted code, unlike an architecture spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from branchnet.clustering import OBJECTIVES, Budget
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE
from branchnet.clustering.stitching.stitch_losses import STITCH
from branchnet.errors import BudgetError, SpecError
from branchnet.pipeline.config.training_sections import (
    DistillSection,
    FactoryName,
    FitSection,
    LabelSource,
    SourceSection,
    StrictSection,
)
from branchnet.specification.sections import NetworkSection
from branchnet.specification.validation import RuleError, model_problems
from branchnet.utils.document_keys import Keys

Kind = Literal["regression", "classification", "direction"]
Baseline = Literal["shared", "random"]
Channels = tuple[float, float, float]
Spreads = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Side = Annotated[int, Field(ge=8)]


class NetworkConfig(StrictSection):
    """One single-task network, made by a factory or by a named constructor.

    Attributes:
        factory: `package.module:function`, called without arguments; returns the network.
        constructor: a named constructor instead, e.g. `torchvision:resnet18`; the result can be loaded by anyone.
        arguments: of the constructor.
        weights: safetensors file, or one of torch.save (.pt, .pth) with tensors alone; without it the factory's own
            weights count, and with `supervised: true` a network of a constructor is trained. `hf-hub:OWNER/NAME`, or
            `hf-hub:OWNER/NAME/FILE`, is a file on the Hugging Face Hub, by default `model.safetensors`: the local cache
            is looked at, and the network only with `download: true`.
        train: with `supervised: true`, whether the network is trained on the labels first, from the weights that its
            factory or constructor gives it (`true`), or taken as it is (`false`). By default those of constructors
            without weights are trained, and a factory's is taken as it is and refused where it does no better than a
            constant answer.
        kind: `"classification"` is measured by the share of the KL divergence that is explained, and by the KL
            divergence and the agreement, plain and beyond chance; `"direction"` by the share of the angle that is
            explained, and by the mean angle; `"regression"` by the explained variance. By default `"direction"` where
            all vectors along dimension 1 of the output have length 1, else `"regression"`.
        loss: `package.module:function` of (output, labels of a batch): affinities by gradients need it, training on
            labels takes it in place of the usual loss.
        mean: what the network's training subtracted from each channel of an image in [0, 1]; by default what timm or
            torchvision say of the network. All networks see the same images.
        std: what it divided each channel by afterwards.
        size: height and width of the images that it was trained on.
    """

    factory: FactoryName | None = None
    constructor: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = None
    train: bool | None = None
    kind: Kind | None = None
    loss: FactoryName | None = None
    mean: Channels | None = None
    std: Spreads | None = None
    size: Side | None = None

    def problems(self) -> list[tuple[Keys, str]]:
        """Not exactly one way to make the network, or an unknown constructor."""
        if (self.factory is None) == (self.constructor is None):
            return [((), "needs either a factory or a constructor")]
        if self.train and self.weights is not None:
            return [(("train",), "`true` trains from the start, and `weights` are those of a trained network")]
        if self.constructor is None:
            return [(("arguments",), "belong to a constructor")] if self.arguments else []
        return NetworkSection(constructor=self.constructor, arguments=self.arguments).problems()


class ImagesConfig(StrictSection):
    """Where the images come from: exactly one of `folder`, `npz` and `factory`.

    Attributes:
        folder: images (JPEG, PNG, WebP and others, see `branchnet.data.ImageFolder`), in the order of their names.
        npz: a file with an array `images`.
        factory: `package.module:function`, returns K inputs that can be read by number: a tensor, an array, a dict or
            tuple of them, a list or a Dataset.
        size: height and width to which folder images are resized and cropped; by default what the networks say, or 224.
        mean: subtracted from each channel of an image in [0, 1]; by default what the networks say, or 0.
        std: divides each channel afterwards; by default what the networks say, or 1.
    """

    folder: Path | None = None
    npz: Path | None = None
    factory: FactoryName | None = None
    size: Side | None = None
    mean: Channels | None = None
    std: Spreads | None = None


class RunOptions(StrictSection):
    """How a run goes, whatever its networks and images; what `branchnet.run` and a config have in common.

    Attributes:
        objective: how trees are judged by the affinity.
        locations: where to branch: a number of places, their names, or nothing for branchnet's choice.
        depth: whether all networks pass all places (`"common"`), or some may leave the trunk early where the others
            have more in common (`"auto"`).
        probe: how many images the networks are compared on.
        held_out: share of the images that the results are measured on and nothing is trained on.
        measure: which affinities propose trees: `"auto"`, RSA and the stitching losses, of which the tree is taken that
            works best before any training; `"rsa"`, RSA alone, as published.
        steps: batches of distillation of whole networks; 0 leaves them as they are built, with stitches.
        stitch_steps: batches of distillation of the stitching layers alone, before that; not with `steps: 0`.
        batch_size: images in a batch.
        learning_rate: peak learning rate of whole networks, which forget at high ones; `"auto"`: the largest that a
            short range test finds harmless.
        compare: train the baselines, too: the fully shared network and random trees.
        baselines: what the chosen tree is compared with, trained in the same way; in place of `compare`.
        distill: how whole networks are distilled, in detail.
        random_trees: how many random trees of about the chosen one's size, where they are among the baselines; fewer
            where the budget admits fewer.
        donor: the task whose weights every node that serves it starts from, e.g. that of the most general network; by
            default those donors with which the stitched tasks lose least, with `measure: rsa` the medoids.
        seed: decides the split of the images and the order of the batches.
    """

    objective: str = DEFAULT_OBJECTIVE
    locations: Annotated[int, Field(ge=1)] | list[str] | None = None
    depth: Literal["common", "auto"] = "common"
    probe: Annotated[int, Field(ge=3)] = 500
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    measure: Literal["auto", "rsa"] = "auto"
    steps: Annotated[int, Field(ge=0)] = 1000
    stitch_steps: Annotated[int, Field(ge=0)] = 200
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    compare: bool = False
    baselines: list[Baseline] | None = None
    distill: DistillSection | None = None
    random_trees: Annotated[int, Field(ge=1, le=100)] = 3
    donor: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def checked(cls, **options: Any) -> RunOptions:
        """The options, each checked.

        Args:
            **options: the attributes above.

        Raises:
            SpecError: every option that is wrong.
        """
        try:
            return RunOptions.model_validate(options)
        except ValidationError as error:
            raise SpecError([f"{keys[0]}: {text}" for keys, text in model_problems(error, RunOptions)]) from error

    @model_validator(mode="after")
    def _follows_rules(self) -> RunOptions:
        if problems := self.problems():
            raise RuleError(problems)
        for name, value in (self.distill.in_place if self.distill is not None else {}).items():
            object.__setattr__(self, name, value)
        return self

    @property
    def compared_with(self) -> tuple[Baseline, ...]:
        """The baselines that are trained, too."""
        if self.baselines is not None:
            return tuple(self.baselines)
        return ("shared", "random") if self.compare else ()

    @property
    def distillation(self) -> dict[str, Any]:
        """Further settings of `branchnet.distill`."""
        return {} if self.distill is None else self.distill.given()

    def problems(self) -> list[tuple[Keys, str]]:
        """An unknown objective, one that RSA cannot be searched with, or settings that contradict each other."""
        found: list[tuple[Keys, str]] = []
        if self.compare and self.baselines == []:
            found.append(
                (("baselines",), "`[]` trains none, and `compare: true` asks for them (remove one of the two)")
            )
        twice = (
            [] if self.distill is None else [name for name in self.distill.in_place if name in self.model_fields_set]
        )
        found += [(("distill", name), f"is given twice: `{name}` stands outside, too (remove one)") for name in twice]
        return found + self._problems_of_objective()

    def _problems_of_objective(self) -> list[tuple[Keys, str]]:
        if self.objective in OBJECTIVES:
            return []
        wrong = f"unknown objective {self.objective!r}"
        if self.objective == STITCH:
            wrong = f"{STITCH!r} is for stitching losses, which `measure: auto` searches with in addition to RSA"
        return [(("objective",), f"{wrong}; expected one of {', '.join(OBJECTIVES)}")]


class RunConfig(RunOptions):
    """A whole run. The verbs that do one step read from it what they need.

    Attributes:
        networks: the single-task networks by task.
        images: unlabelled images: the probe, the distillation set and the held-out set are taken from them.
        budget: e.g. `60% params`, `25e6 params`, `4 GMACs`; `branchnet run` needs it.
        labels: `package.module:function`, returns K labels for each task, in the order of the images; only affinities
            by gradients need them.
        supervised: train with labels: `train` and `test` take the place of `images`.
        train: samples with labels to train on.
        validation: others, by which states of training are chosen; by default a part of `train` is set aside.
        test: others, on which the results are measured.
        fit: how networks are trained on labels.
        processes: so many single-task networks are trained at the same time, each in a process of its own.
        branched: the architecture, or the saved network, that `branchnet train` trains.
        download: whether weights on the Hub (`hf-hub:OWNER/NAME`) may be downloaded.
    """

    networks: Annotated[dict[str, NetworkConfig], Field(min_length=2)]
    images: ImagesConfig | None = None
    budget: str | None = None
    labels: FactoryName | None = None
    supervised: bool = False
    train: LabelSource | None = None
    validation: LabelSource | None = None
    test: LabelSource | None = None
    fit: FitSection = FitSection()
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    branched: Path | None = None
    download: bool = False

    def problems(self) -> list[tuple[Keys, str]]:
        """What is wrong with the options, networks, budget or sources, or a donor that is none of the tasks."""
        found: list[tuple[Keys, str]] = [
            (("networks", task, *keys), text)
            for task, network in self.networks.items()
            for keys, text in network.problems()
        ]
        if self.donor is not None and self.donor not in self.networks:
            found.append((("donor",), unknown_donor(self.donor, self.networks)))
        try:
            if self.budget is not None:
                Budget.parse(self.budget)
        except BudgetError as error:
            found.append((("budget",), str(error)))
        return found + self._problems_of_sources() + super().problems()

    def _problems_of_sources(self) -> list[tuple[Keys, str]]:
        sources = self.sources
        found: list[tuple[Keys, str]] = [
            ((name, *keys), text)
            for name, source in sources.items()
            if isinstance(source, SourceSection)
            for keys, text in source.problems()
        ]
        for number, (name, source) in enumerate(sources.items()):
            if other := next((one for one in list(sources)[:number] if sources[one] == source), None):
                found.append(((name,), f"is the same source as `{other}`; expected another split"))
        if self.supervised:
            found += [
                ((name,), "is missing; `supervised: true` needs it")
                for name in ("train", "test")
                if name not in sources
            ]
            if self.images is not None:
                found.append(
                    (("images",), "are not read with `supervised: true` (remove them; inputs are those of `train`)")
                )
        found += [
            (("networks", task, "train"), "is for `supervised: true`, where networks are trained on labels")
            for task, network in self.networks.items()
            if network.train and not self.supervised
        ]
        if not self.supervised and self.images is None and "train" not in sources:
            found.append(
                (("images",), "is missing; expected unlabelled images, or `supervised: true` and labelled sources")
            )
        return found

    @property
    def sources(self) -> dict[str, LabelSource]:
        """The samples with labels, by what they are for."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: source for name, source in given.items() if source is not None}

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds that are stated."""
        return {task: network.kind for task, network in self.networks.items() if network.kind is not None}

    def options(self) -> dict[str, Any]:
        """The options by name, as `branchnet.run` takes them."""
        return {name: getattr(self, name) for name in RunOptions.model_fields} | {"distill": self.distillation or None}


def unknown_donor(donor: str, tasks: Mapping[str, object]) -> str:
    """What an error says of a donor that is none of the tasks."""
    return f"unknown task {donor!r}; expected one of {', '.join(tasks)}"
