"""The process of some parts: their units one after another, until the time is up or one of them fails."""

from __future__ import annotations

import faulthandler
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators
from gpu_parts.pages import write_page
from gpu_parts.plan import Part
from gpu_parts.records import Record
from gpu_parts.settings import Settings


def measure_parts(records: Mapping[Part, Record], settings: Settings, until: float) -> None:
    """Measure what is missing while there is time; end after the first failure, which may have broken the device.

    A part that cannot be imported, or that cannot say what its units are, leaves the others their turn.

    A unit that runs past its limit, even inside CUDA, ends the process with the tracebacks of all threads on stderr.

    until: when the time is up, as `time.time()` counts.
    """
    prepare_process(settings)
    for part, record in records.items():
        if not planned(part, record, settings):
            continue
        for unit in record.missing or []:
            if until - time.time() < part.least:
                break
            outcome = measure_unit(part, record, settings, unit, min(until - time.time(), part.unit_limit))
            write_page(part, record, settings)
            if "error" in outcome:
                return


def planned(part: Part, record: Record, settings: Settings) -> bool:
    """Whether the part could say which units it has; the record says which, or why not."""
    try:
        record.plan(list(import_module(f"gpu_parts.{part.name}").units(settings)))
    except Exception:  # the reason belongs into the results, and must not keep other parts from being measured
        reason = traceback.format_exc()
        print(f"{part.name} does not start:\n{reason}", flush=True)
        record.fail_to_start(reason)
        write_page(part, record, settings)
        return False
    return True


def measure_unit(part: Part, record: Record, settings: Settings, unit: str, limit: float) -> dict[str, Any]:
    """Measure one unit, keep its result or its traceback, and print what it says."""
    module = import_module(f"gpu_parts.{part.name}")
    print(f"{unit}:", flush=True)
    record.begin(unit)
    settings = replace(settings, keep=record.keep, until=time.time() + limit)
    faulthandler.dump_traceback_later(limit, exit=True)
    begun = time.perf_counter()
    try:
        outcome = {"result": module.measure(settings, *module.units(settings)[unit])}
        said = [line for line in module.page(unit, outcome["result"]) if line.startswith("- ")]
    except Exception:  # the reason belongs into the results, and must not keep other units from being measured
        outcome = {"error": traceback.format_exc()}
        said = [outcome["error"]]
    faulthandler.cancel_dump_traceback_later()
    outcome |= {"took": time.perf_counter() - begun}
    record.finish(unit, outcome)
    print("\n".join(said), flush=True)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    return outcome


def prepare_process(settings: Settings) -> None:
    """TF32 on, for both sides and the ceilings; in a rehearsal graphs are traced as they are, but run eagerly."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    define_torchvision_operators()
    if settings.rehearsal:
        _run_graphs_eagerly()
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def _run_graphs_eagerly() -> None:
    """Let torch.compile trace and guard as ever, and run the graphs without generating code, which takes long."""
    compile_ = torch.compile

    def traced_only(function: Any, *, options: dict[str, Any] | None = None, **arguments: Any) -> Any:
        filtering = {key: value for key, value in (options or {}).items() if key == "guard_filter_fn"}
        return compile_(function, **arguments | {"backend": "eager"}, options=filtering or None)

    torch.compile = traced_only  # type: ignore[assignment]
