"""Hosts that do not exist, on a machine that does: try a plan before you own the hardware.

Each host of a cluster becomes a network namespace with its own address, rates on its links, a
processor quota and a memory limit. Nothing here imports torch.
"""

from executor.emulate.hosts import EmulatedHosts, emulated

__all__ = ["EmulatedHosts", "emulated"]
