"""Inner products of K feature vectors, accumulated in float64 over blocks of features.

Everything that this room compares follows from the (K, K) inner products of one network at one location. A block is
centred as it is read, so features are read from memory once; block means are merged by the pairwise update of Chan,
Golub and LeVeque (1983), "Algorithms for computing the sample variance", equation 2.1, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from branchnet.affinity.features.feature_buffer import Kept
from branchnet.affinity.measures.symmetric_matmul import add_symmetric_product, full_precision, mirrored

# Numbers in a block: 8 MB of float32, which stay in a processor's cache; a GPU takes more to be busy.
_BLOCK_NUMBERS = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}
# A difference of values rounded to eps has an error of a few eps of each value; its square, a few eps^2 of the squared
# norm. 64 = 8^2 leaves room for the sums.
_ROUNDING = 64.0


@dataclass(frozen=True)
class Centring:
    """Which means are subtracted before the inner products.

    Attributes:
        inputs: the mean of every feature over the K inputs.
        features: the mean of every input over its F features.
    """

    inputs: bool = False
    features: bool = False


@dataclass(frozen=True)
class Gram:
    """Inner products of K inputs.

    Attributes:
        products: float64, (K, K).
        floor: float64, (K,): a squared norm up to this size is rounding error alone.
    """

    products: Tensor
    floor: Tensor


class GramAccumulator:
    """Adds up the inner products of K inputs over features that arrive in chunks."""

    def __init__(self, centring: Centring) -> None:
        self._centring = centring
        self._products: Tensor | None = None
        self._norms: Tensor | None = None
        self._means: list[Tensor] = []
        self._sizes: list[int] = []
        self._epsilon = 0.0

    def add(self, features: Kept) -> None:
        """Add features (K, F); half precision is computed in float32."""
        device = features.batches[0].device
        if self._products is None or self._norms is None:
            count = sum(len(batch) for batch in features.batches)
            self._products = torch.zeros(count, count, dtype=torch.float64, device=device)
            self._norms = torch.zeros(count, dtype=torch.float64, device=device)
        with full_precision(device):
            for block in column_blocks(features):
                self._add_block(block, self._products, self._norms)

    def _add_block(self, block: Tensor, products: Tensor, norms: Tensor) -> None:
        self._epsilon = max(self._epsilon, torch.finfo(block.dtype).eps)
        if self._centring.inputs:
            # The size of what is subtracted decides how much rounding error the rest carries: see `finish`.
            columns = block.mean(dim=0)
            norms += torch.linalg.vector_norm(columns).double() ** 2
            block -= columns
        if self._centring.features:
            mean = block.mean(dim=1, keepdim=True)
            block -= mean
            self._means.append(mean[:, 0].double())
            self._sizes.append(block.shape[1])
        add_symmetric_product(products, block)

    @classmethod
    def joined(cls, sums: Sequence[GramAccumulator]) -> GramAccumulator:
        """What adding the features of all of these to one accumulator gives."""
        whole = cls(sums[0]._centring)
        for one in sums:
            if one._products is None or one._norms is None:
                raise ValueError("no features were added")
            whole._products = one._products if whole._products is None else whole._products + one._products
            whole._norms = one._norms if whole._norms is None else whole._norms + one._norms
            whole._means += one._means
            whole._sizes += one._sizes
            whole._epsilon = max(whole._epsilon, one._epsilon)
        return whole

    def sum_over_ranks(self) -> None:
        """Add up what the processes of `torch.distributed` hold, each having seen other features of the same inputs."""
        if self._products is None or self._norms is None:
            raise ValueError("no features were added")
        dist.all_reduce(self._products)
        dist.all_reduce(self._norms)
        device = self._products.device
        held: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(held, ([mean.cpu() for mean in self._means], self._sizes, self._epsilon))
        self._means = [mean.to(device) for means, _, _ in held for mean in means]
        self._sizes = [size for _, sizes, _ in held for size in sizes]
        self._epsilon = max(epsilon for _, _, epsilon in held)

    def finish(self) -> Gram:
        """The inner products of everything added."""
        if self._products is None or self._norms is None:
            raise ValueError("no features were added")
        products = mirrored(self._products)
        # |x|^2 <= 2 (|mean|^2 + |x - mean|^2): a bound on the norm before centring, from what was kept.
        norms = 2 * (self._norms + products.diagonal())
        if self._centring.features:
            sizes = torch.tensor(self._sizes, dtype=torch.float64, device=products.device)
            means = torch.stack(self._means, dim=1)
            products = products + _spread_of_means(means, sizes)
            norms = norms + 2 * means**2 @ sizes
        return Gram(products, _ROUNDING * self._epsilon**2 * norms)


def gram(features: Tensor, centring: Centring) -> Gram:
    """Inner products of the rows of `features` (K, F)."""
    accumulator = GramAccumulator(centring)
    accumulator.add(Kept([features]))
    return accumulator.finish()


def double_centred(products: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inner products, (K, K), after the mean over the K inputs was subtracted from the vectors."""
    rows = products.mean(axis=1)
    centred: npt.NDArray[np.float64] = products - rows[:, None] - rows[None, :] + rows.mean()
    return centred


def rounding_floor(features: Tensor) -> float:
    """The sum of squares up to which centred features (K, F) are rounding error alone."""
    return _ROUNDING * float(torch.finfo(features.dtype).eps) ** 2 * float(features.double().square().sum())


def column_blocks(features: Kept) -> Iterator[Tensor]:
    """Features (K, F), a few columns at a time: (K, width). Half precision becomes float32.

    A block may be written to; it is overwritten by the next.
    """
    batches, reference = features.batches, features.reference
    count, total = sum(len(batch) for batch in batches), batches[0].shape[1]
    device, dtype = batches[0].device, _computed_in(batches[0])
    # At least 256 columns: narrower matrix products do not use the processor's vectors well, however large K is.
    width = min(total, max(256, _BLOCK_NUMBERS.get(device.type, _BLOCK_NUMBERS["cpu"]) // count))
    scratch = torch.empty(count * width, dtype=dtype, device=device)
    for start in range(0, total, max(width, 1)):
        stop = min(start + width, total)
        block = scratch[: count * (stop - start)].view(count, stop - start)
        torch.cat([batch[:, start:stop] for batch in batches], out=block)
        yield block if reference is None else block.add_(reference[start:stop])


def _computed_in(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _spread_of_means(means: Tensor, sizes: Tensor) -> Tensor:
    """What centring every block by its own mean subtracted beyond the mean over all blocks.

    Args:
        means: (K, blocks).
        sizes: features in every block.
    """
    offsets = means - (means @ sizes / sizes.sum())[:, None]
    return (offsets * sizes) @ offsets.T
