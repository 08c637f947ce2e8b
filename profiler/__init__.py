"""Models, machines and measurements: what the planner decides on.

Documents load without torch; capture and measuring load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.cluster import Cluster
    from profiler.graph import ModelGraph
    from profiler.links import LinkOptions, measure_links
    from profiler.profile import Profile
    from profiler.refitting import refit
    from profiler.session import profile_model
    from profiler.sources import Example

__all__ = [
    "Cluster",
    "Example",
    "LinkOptions",
    "ModelGraph",
    "Profile",
    "measure_links",
    "profile_model",
    "refit",
]

_HOMES = {
    "Cluster": "profiler.cluster",
    "Example": "profiler.sources",
    "LinkOptions": "profiler.links",
    "ModelGraph": "profiler.graph",
    "Profile": "profiler.profile",
    "measure_links": "profiler.links",
    "profile_model": "profiler.session",
    "refit": "profiler.refitting",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562), so that reading documents never imports torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
