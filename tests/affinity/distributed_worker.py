"""Run by torchrun: measures affinities with several processes and saves what each of them gets."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from affinity.toys import given, images, rows, small_cnn
from branchnet.affinity import cka, rsa
from branchnet.errors import AffinityError


def main(folder: Path, inputs: int) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    networks = {f"task{seed}": small_cnn(seed) for seed in range(5)}
    rsa(networks, images(inputs), batch_size=5).save(folder / f"rsa-{rank}.npz")
    cka(networks, images(inputs), batch_size=5, bootstrap=0).save(folder / f"cka-{rank}.npz")
    try:
        rsa(networks, images(inputs, seed=rank), batch_size=5)
    except AffinityError as error:
        (folder / f"error-{rank}").write_text(str(error))
    table = torch.randn(12, 6)
    try:
        rsa({"alive": given(table), "dead": given(table * 0)}, rows(12))
    except AffinityError as error:
        (folder / f"dead-{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
