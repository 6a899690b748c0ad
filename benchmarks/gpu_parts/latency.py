"""Part 5: what the latency table predicts for a tree, and what the tree reaches of the device's ceilings."""

from __future__ import annotations

from typing import Any

from inference import ceilings, make_images, peak_activations
from inference_page import beside_ceiling, prediction
from inference_sides import count

import branchnet
from branchnet import LatencyTable, Tree
from branchnet.inference import Latency
from branchnet.inference.latency_tables import table_and_others
from gpu_parts.comparing import compare, copied_to, make_case, staged_on, subject_of
from gpu_parts.settings import Settings
from gpu_parts.verdicts import times_table

BRANCHED = "branched, compiled"


def units(settings: Settings) -> dict[str, tuple[str, int]]:
    """Batch 1 first."""
    return {
        f"{network}, batch {batch}": (network, batch) for batch in settings.batches[:2] for network in settings.networks
    }


def measure(settings: Settings, network: str, batch: int) -> dict[str, Any]:
    """The tree in turns with the ceilings, and in turns with the stages of the table, in bfloat16."""
    case = make_case(settings, network, batch, "bf16")
    subject, x = subject_of(case), make_images(case)
    branched = copied_to(branchnet.build(subject.tree, subject.staged, init="donor"), case)
    small: dict[str, int] = {"size": 64, "numbers": 2**16} if settings.rehearsal else {}
    tops = ceilings(case.device, case.dtype, **small)
    ready = [(BRANCHED, lambda: branchnet.compile(branched, x, mode=case.mode, dynamic=False, copy_outputs=False), 0)]
    result, runs = compare(ready, x, settings, tops={name: run for name, (run, _) in tops.items()})
    table, others = table_and_others(
        staged_on(case),
        x,
        runs,
        device=case.device,
        mode=case.mode,
        widths=sorted({*subject.tree.widths, 1}),
        repeats=settings.rounds(0.2),
    )
    return result | {
        "batch": batch,
        "tree": [[list(cluster) for cluster in stage] for stage in subject.tree.partitions],
        "flops": batch * subject.size(subject.tree, "flops"),
        "bytes": x.itemsize * count(branched) + peak_activations(runs[BRANCHED], x),
        "ceilings": {
            name: {"amount": amount, "seconds": result["seconds"][name]} for name, (_, amount) in tops.items()
        },
        "latency table": table.to_dict(),
        "in turns with the table": {name: list(latency.samples) for name, latency in others.items()},
    }


def page(unit: str, result: dict[str, Any]) -> list[str]:
    """The times, the prediction and its bar, and the shares of the ceilings."""
    table = LatencyTable.from_dict(result["latency table"])
    run = Latency(tuple(result["seconds"][BRANCHED]))
    speed, of_product = beside_ceiling(run, result["flops"], result, "product")
    moved, of_copy = beside_ceiling(run, result["bytes"], result, "copy")
    product, copy = (
        top["amount"] / Latency(tuple(top["seconds"])).median
        for top in (result["ceilings"]["product"], result["ceilings"]["copy"])
    )
    return [
        *times_table(result["seconds"], result["preparation"], result["batch"]),
        "",
        prediction(table, Tree(table.tasks, result["tree"]), result["in turns with the table"]),
        f"- ceilings of the same rounds: {2 * product / 1e12:.1f} TFLOP/s in a large product (an addition and a "
        f"multiplication count as two here), {copy / 1e9:.0f} GB/s in a large copy",
        f"- the tree: {2 * speed / 1e12:.2f} TFLOP/s, {of_product:.1%} of the product's; {moved / 1e9:.0f} GB/s "
        f"counting weights and peak activations once, {of_copy:.1%} of the copy's",
        "",
        "```",
        str(table),
        "```",
    ]
