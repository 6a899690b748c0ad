"""Run by torchrun: measures affinities with several processes and saves what each of them gets."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from branchnet.affinity import cka, pwcca, rsa, stitch_affinity
from branchnet.errors import AffinityError
from tests.affinity.toys import Block, Staged, given, images, rows, small_cnn

MEASURES = {
    "rsa": rsa,
    "cka": partial(cka, bootstrap=0),
    "minibatch": partial(cka, estimator="minibatch"),
    "pwcca": partial(pwcca, variance=0.5),
    "rounds": partial(rsa, memory_limit=8 * 200),
    "stitch": stitch_affinity,
}


class Failing(nn.Module):
    """Fails in one of the processes."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rank == 1 and len(x) > 2:
            raise RuntimeError("as asked")
        return x.mean(dim=(2, 3))


def main(folder: Path, inputs: int) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    networks = {f"task{seed}": small_cnn(seed) for seed in range(5)}
    for name, measure in MEASURES.items():
        measure(networks, images(inputs), batch_size=5).save(folder / f"{name}-{rank}.npz")
    try:
        rsa(networks, images(inputs, seed=rank), batch_size=5)
    except AffinityError as error:
        (folder / f"error-{rank}").write_text(str(error))
    table = torch.randn(12, 6)
    try:
        rsa({"alive": given(table), "dead": given(table * 0)}, rows(12))
    except AffinityError as error:
        (folder / f"dead-{rank}").write_text(str(error))
    broken = [*small_cnn(0).stages[:2], Block(Failing(rank))]
    try:
        cka({"good": small_cnn(1), "broken": Staged(*broken)}, images(inputs), estimator="minibatch", batch_size=5)
    except RuntimeError as error:
        (folder / f"broken-{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
