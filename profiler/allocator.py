"""How a rank uses memory: freed blocks are kept, what only imports needed is not.

A step frees what the step before it allocated. By default the C library hands large freed blocks
back to the system and takes them again, page by page, zeroed: on the order of a tenth of a step's
time. Ranks, and the process that measures layers, keep them instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
MAPPED_BYTES = 32 * 2**20
"""Blocks from this size on lie outside of the heap, in pages of their own, given back when freed.
The C library takes no higher limit."""
_KEPT_BYTES = 1 << 30
_STEP_BYTES = 16 * 2**20


def keep_freed_memory() -> bool:
    """Ask the C library of this process to keep freed memory; False where it cannot be asked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MAPPED_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _STEP_BYTES),
    )
    return all([bool(mallopt(name, value)) for name, value in settings])


def release_holes() -> bool:
    """Give pages that only freed blocks of the heap lie on back to the system; False where the C
    library cannot be asked."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # not glibc
        return False


_TUNABLES = "GLIBC_TUNABLES"
_NO_THREAD_CACHE = "glibc.malloc.tcache_count=0"


def heap_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """``variables`` for starting a process whose heap stays as small as its tensors allow.

    An aligned block is cut out of a larger one, and glibc keeps the cuttings (under 100 bytes) in
    a cache of the thread. There they stop the holes beside them from growing together again, and
    no later tensor of the same size fits where one was freed: a step of a vision transformer took
    2.4 times the bytes that were ever alive at once, without that cache 1.3 times. Only the start
    of a process can turn it off. What else the variable says is kept.
    """
    found = dict(variables)
    others = [x for x in found.get(_TUNABLES, "").split(":") if x and "tcache_count" not in x]
    return {**found, _TUNABLES: ":".join([*others, _NO_THREAD_CACHE])}


_MADV_DONTNEED = 4


def release_library_pages() -> int:
    """Give up the pages of libraries that importing them touched; returns how many bytes.

    Code that runs later comes back by itself, from the file cache. A process that imported torch
    is then as small as one forked from it, to which only what it touches is mapped. Only mappings
    of files that were never written to are given up. 0 where the system does not tell of them.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
        listing = Path("/proc/self/smaps").read_text()
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    released = 0
    for start, end, resident in _untouched_files(listing):
        if madvise(start, end - start, _MADV_DONTNEED) == 0:
            released += resident
    return released


def _untouched_files(listing: str) -> Iterator[tuple[int, int, int]]:
    """Start, end and resident bytes of the read-only file mappings without pages of their own."""
    for block in _mappings(listing.splitlines()):
        span, permissions, _, _, inode = block[0].split()[:5]
        sizes = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in block[1:])
            if rest.endswith("kB")
        }
        if inode != "0" and "w" not in permissions and sizes.get("Anonymous") == 0:
            start, end = (int(at, 16) for at in span.split("-"))
            yield start, end, sizes.get("Rss", 0)


def _mappings(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each mapping: a heading (``start-end permissions ...``), then its sizes."""
    block: list[str] = []
    for line in lines:
        if "-" in line.partition(" ")[0] and block:
            yield block
            block = []
        block.append(line)
    if block:
        yield block
