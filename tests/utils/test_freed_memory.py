"""Freed memory is kept inside and given back afterwards, as the kernel counts it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told"
)

SCRIPT = """
import json, resource, threading
import torch
from branchnet.utils.freed_memory import keeping_freed_memory

MIB = 64


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(MIB << 18)  # of four bytes each, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20


found = {"outside": faults()}
before = resident()
with keeping_freed_memory():
    with keeping_freed_memory():
        faults()
    found["inside"] = faults()  # the inner one's end changes nothing
    found["kept"] = resident() - before
found["left"] = resident() - before
found["afterwards"] = faults()


@keeping_freed_memory()
def decorated(first, *, second):
    return first + second


found["decorated"] = decorated(1, second=2)
print(json.dumps(found))
"""


def measured(**environment: str) -> dict[str, int]:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert process.returncode == 0, process.stderr
    return dict(json.loads(process.stdout))


def test_tensors_inside_cost_no_page_faults_and_memory_is_given_back() -> None:
    found = measured()
    assert found["outside"] >= 20  # a page of each tensor, even where a page is huge
    assert found["inside"] < found["outside"] / 20
    assert found["kept"] >= 60
    assert found["left"] < 10
    assert found["afterwards"] > found["outside"] / 2
    assert found["decorated"] == 3


def test_settings_of_the_user_stay() -> None:
    found = measured(MALLOC_MMAP_MAX_="1000")
    assert found["inside"] > found["outside"] / 2
    assert found["kept"] < 10
