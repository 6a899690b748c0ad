"""The parts by worth, and what each may take."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: its module in `gpu_parts`, and the name of its results.
        title: what it measures.
        expected: seconds that all of it should take on an H100, guessed before anything ran on one.
        limit: seconds after which the next part has its turn; what is left goes on when all have had theirs.
        least: seconds below which it is not worth starting it, nor its next unit.
        unit_limit: seconds after which a unit is taken to hang.
    """

    name: str
    title: str
    expected: int
    limit: int
    least: int
    unit_limit: int

    def __post_init__(self) -> None:
        if not self.least <= self.unit_limit <= self.limit:
            raise ValueError(f"{self.name}: expected least <= unit_limit <= limit")


def rehearsed(part: Part) -> Part:
    """The same on a CPU with tiny networks."""
    return replace(part, expected=8, limit=300, least=1, unit_limit=300)


PARTS = (
    Part("marked_tests", "the tests marked gpu", expected=90, limit=160, least=30, unit_limit=160),
    Part("trees", "trees against separate compiled networks", expected=650, limit=180, least=30, unit_limit=150),
    Part("fusion", "equal siblings fused against unfused", expected=180, limit=60, least=15, unit_limit=60),
    Part("ways", "streams, regions, channels last", expected=300, limit=60, least=30, unit_limit=60),
    Part("latency", "the latency table's prediction; ceilings", expected=160, limit=60, least=25, unit_limit=60),
    Part("rsa_and_distillation", "RSA and a step of distillation", expected=80, limit=60, least=20, unit_limit=60),
    Part("max_autotune", "max-autotune against reduce-overhead", expected=300, limit=240, least=60, unit_limit=240),
)
