"""Rendezvous stores: where ranks find each other. The one place that makes them.

torch exports these classes without declaring them, hence the marks for the type checker.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch.distributed as dist


class Store(Protocol):
    """What ranks use of a store: small values by key, waiting for those not there yet."""

    def set(self, key: str, value: str) -> None:
        """Put a value."""

    def get(self, key: str) -> bytes:
        """A value, once it is there; raises after the store's time limit."""


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
    )


def below(prefix: str, store: Store) -> Store:
    """The part of a store whose keys begin with ``prefix``."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined, arg-type]


def put_bytes(store: Store, key: str, value: bytes) -> None:
    """Put a value that is not text; the store takes bytes, its declaration does not say so."""
    store.set(key, value)  # type: ignore[arg-type]


def join_group(store: Store, *, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the process group of a plan's ranks."""
    dist.init_process_group(
        "gloo",
        store=store,  # type: ignore[arg-type]
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
