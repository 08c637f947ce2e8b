"""Freed memory kept for the next step.

A step frees what the step before it allocated. By default the C library hands large freed blocks
back to the system and takes them again, page by page, zeroed: on the order of a tenth of a step's
time. Ranks, and the process that measures layers, keep them instead.
"""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT_BYTES = 1 << 30
_STEP_BYTES = 16 * 2**20


def keep_freed_memory() -> bool:
    """Ask the C library of this process to keep freed memory; False where it cannot be asked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _STEP_BYTES),
    )
    return all([bool(mallopt(name, value)) for name, value in settings])
