"""The process of one part: its units one after another, until its time is up or one of them fails."""

from __future__ import annotations

import faulthandler
import gc
import time
import traceback
import warnings
from importlib import import_module
from typing import Any

import torch
from stages import define_torchvision_operators

from gpu_parts.pages import write_page
from gpu_parts.plan import Part
from gpu_parts.records import Record
from gpu_parts.settings import Settings


def measure_units(part: Part, settings: Settings, record: Record, until: float) -> None:
    """Measure what is missing while there is time; end after the first failure, which may have broken the device.

    A unit that runs past its limit, even inside CUDA, ends the process with the tracebacks of all threads on stderr.

    until: when the part's time is up, as `time.time()` counts.
    """
    prepare_process(settings)
    module = import_module(f"gpu_parts.{part.name}")
    units = module.units(settings)
    record.plan(list(units))
    for unit in record.missing or []:
        left = until - time.time()
        if left < part.least and not settings.rehearsal:
            return
        print(f"{unit}:", flush=True)
        record.begin(unit)
        faulthandler.dump_traceback_later(min(left, part.unit_limit), exit=True)
        outcome = _measured(module, settings, units[unit])
        faulthandler.cancel_dump_traceback_later()
        record.finish(unit, outcome)
        write_page(part, module, record, settings)
        if "error" in outcome:
            print(outcome["error"], flush=True)
            return
        print("\n".join(line for line in module.page(unit, outcome["result"]) if line.startswith("- ")), flush=True)
        torch.compiler.reset()
        gc.collect()


def _measured(module: Any, settings: Settings, arguments: tuple[Any, ...]) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        outcome = {"result": module.measure(settings, *arguments)}
    except Exception:  # the reason belongs into the results, and must not keep other units from being measured
        outcome = {"error": traceback.format_exc()}
    return outcome | {"took": time.perf_counter() - begun}


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
