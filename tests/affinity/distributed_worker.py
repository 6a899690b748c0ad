"""Run by torchrun: measures affinities with several processes and saves them from each."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from branchnet.affinity import cka, rsa

sys.path.insert(0, str(Path(__file__).parents[1]))
from affinity.toys import images, small_cnn


def main(folder: Path, inputs: int) -> None:
    dist.init_process_group("gloo")
    networks = {f"task{seed}": small_cnn(seed) for seed in range(4)}
    probe = images(inputs)
    rsa(networks, probe, batch_size=5).save(folder / f"rsa-{dist.get_rank()}.npz")
    cka(networks, probe, batch_size=5, bootstrap=0).save(folder / f"cka-{dist.get_rank()}.npz")
    try:
        rsa(networks, images(inputs, seed=dist.get_rank()), batch_size=5)
    except Exception as error:
        (folder / f"error-{dist.get_rank()}").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
