"""Freed memory stays with the process, unless its user has chosen otherwise."""

import os
import subprocess
import sys

import pytest

from keypoint_detection import allocator

# Frees and wants 64 MB a hundred times, and tells whether anything was changed and how many pages were asked for.
PROGRAM = """
import resource
import numpy as np
from keypoint_detection.allocator import keep_freed_memory

changed = keep_freed_memory(2**28)
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = pages()
for _ in range(100):
    np.ones(2**23)
print(changed, pages() - before)
"""
MUCH = 100 * 2**26 // 2**21  # as many pages as that takes, if each of them were of 2 MB

GLIBC = hasattr(os, "confstr") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


def run(**environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    )
    changed, pages = result.stdout.split()
    return changed == "True", int(pages)


def test_freed_memory_is_not_asked_for_again():
    changed, pages = run()
    assert changed == GLIBC
    assert (pages < MUCH) == GLIBC


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_what_the_user_chose_stays(environment):
    changed, pages = run(**environment)
    assert not changed
    assert pages >= MUCH


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory(2**28)


def test_other_c_libraries_are_left_alone(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory(2**28)
