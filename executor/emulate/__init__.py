"""Hosts that do not exist, on a machine that does: try a plan before you own the hardware.

Each host of a cluster becomes a network namespace with its own address, rates on its links, a
processor quota and a memory limit. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor.emulate.hosts import EmulatedHosts, emulated

__all__ = ["EmulatedHosts", "emulated"]


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): the command line mentions hosts more often than it makes them.
    if name in __all__:
        from executor.emulate import hosts

        return getattr(hosts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
