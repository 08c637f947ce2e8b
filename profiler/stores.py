"""Rendezvous stores: where ranks find each other. The one place that makes them.

torch exports these classes without declaring them, hence the marks for the type checker.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from profiler.glooloop import threads_behind_computing

PART_BYTES = 4 * 2**20
"""A TCP store drops the connection of whoever puts more than 8 MiB under one key (torch 2.13)."""


class Store(Protocol):
    """What ranks use of a store: small values by key, waiting for those not there yet."""

    def set(self, key: str, value: str) -> None:
        """Put a value."""

    def get(self, key: str) -> bytes:
        """A value, once it is there; raises after the store's time limit."""

    def check(self, keys: list[str]) -> bool:
        """Whether values are there for all of ``keys``; never waits for them."""


def file_store(path: str, world_size: int) -> Store:
    """A store in a file of this machine."""
    return dist.FileStore(path, world_size)  # type: ignore[attr-defined]


def tcp_store(host: str, port: int, *, hosted_here: bool, timeout_s: float) -> Store:
    """A store behind an address; opened by this process if ``hosted_here``."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        is_master=hosted_here,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        # Opened a second time in one process (by a script's own group, say) it is the same store.
        multi_tenant=True,
    )


def below(prefix: str, store: Store) -> Store:
    """The part of a store whose keys begin with ``prefix``."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined, arg-type]


def put_bytes(store: Store, key: str, value: bytes) -> None:
    """Put a value of any length under ``key``, to be read by :func:`get_bytes`."""
    parts = [value[i : i + PART_BYTES] for i in range(0, len(value), PART_BYTES)]
    for number, part in enumerate(parts):
        # The store takes bytes, its declaration does not say so.
        store.set(f"{key}/{number}", part)  # type: ignore[arg-type]
    store.set(key, str(len(parts)))


def get_bytes(store: Store, key: str) -> bytes:
    """What :func:`put_bytes` put, waiting for it as the store waits."""
    num_parts = int(store.get(key))
    return b"".join(bytes(store.get(f"{key}/{number}")) for number in range(num_parts))


def join_group(store: Store, *, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the gloo process group of ``world_size`` ranks that meet at ``store``."""
    with threads_behind_computing():
        dist.init_process_group(
            "gloo",
            store=store,  # type: ignore[arg-type]
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
