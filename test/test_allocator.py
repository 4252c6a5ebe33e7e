"""Freed memory stays with the process, unless its user has chosen otherwise."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from keypoint_detection import allocator
from keypoint_detection.allocator import give_back_freed_memory, keep_freed_memory

# Frees and wants 160 MB twenty times, and tells whether anything was changed and how many pages were asked for.
PROGRAM = """
import resource
import numpy as np
from keypoint_detection.allocator import give_back_freed_memory, keep_freed_memory

changed = keep_freed_memory(2**25, 2**28)
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    blocks = [np.ones(2**21) for _ in range(10)]
work()
before = pages()
for _ in range(20):
    work()
kept = pages() - before
give_back_freed_memory()
before = pages()
work()
print(changed, kept, pages() - before)
"""
# As many pages as it takes to want it once, if each of them were of 2 MB.
ONCE = 10 * 2**24 // 2**21
ON_GLIBC = platform.libc_ver()[0] == "glibc"


def run(**environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    changed, pages, after = result.stdout.split()
    return changed == "True", int(pages), int(after)


def test_freed_memory_is_kept_until_it_is_given_back():
    changed, pages, after = run()
    assert changed == ON_GLIBC
    if ON_GLIBC:  # what other libraries keep is theirs
        assert pages < 20 * ONCE
        assert after >= ONCE


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_what_the_user_chose_stays(environment):
    changed, pages, _ = run(**environment)
    assert not changed
    if ON_GLIBC:
        assert pages >= 20 * ONCE


@pytest.fixture
def library(monkeypatch):
    """A C library that notes what is set in it."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    fake = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments) or 1, calls=calls)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: fake)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator, "_highest", [0, 0])
    return fake


def test_limits_are_never_lowered(library):
    assert keep_freed_memory(100, 2000)
    assert keep_freed_memory(200, 1000)
    assert library.calls == [(-3, 100), (-1, 2000), (-3, 200), (-1, 2000)]


def test_other_choices_in_the_environment_do_not_count(library, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7")
    assert keep_freed_memory(100, 2000)


def test_an_old_library_takes_the_blocks_that_it_can(library):
    library.mallopt = lambda name, size: library.calls.append((name, size)) or name == -1 or size <= 2**25
    assert keep_freed_memory(2**30, 2**30)
    assert library.calls == [(-3, 2**30), (-3, 2**25), (-1, 2**30)]
    library.mallopt = lambda name, size: 0
    assert not keep_freed_memory(2**30, 2**30)


def test_other_systems_are_left_alone(library, monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not keep_freed_memory(100, 2000)
    give_back_freed_memory()
    assert not library.calls


def test_other_c_libraries_are_left_alone(library):
    del library.mallopt
    assert not keep_freed_memory(100, 2000)
    give_back_freed_memory()
