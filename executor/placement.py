"""Which rank of a plan a process is: by its host, where its launcher has told it the host's name.

torchrun numbers processes along the nodes; a plan numbers ranks along its stages and binds each to
a device of a named host. With ``APPORTION_HOST`` set on every host, as ``apportion hosts run``
does, the two need not agree: the processes of a host take the plan's ranks on that host in order,
and those that are left over have nothing to do. Without it, torchrun's numbers are the plan's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.planfile import Plan
from profiler.errors import InvalidInputError
from profiler.limits import HOST_VARIABLE

if TYPE_CHECKING:
    from profiler.environment import Environment


def placed(
    environment: Environment, plan: Plan, variables: Mapping[str, str] = os.environ
) -> Environment | None:
    """This process's place among the plan's ranks; None when it has no part in the plan.

    Raises:
        InvalidInputError: the host has fewer processes than the plan has ranks there.
    """
    host, local = variables.get(HOST_VARIABLE), variables.get("LOCAL_RANK", "")
    if not host or not local.isdigit():
        return environment
    ranks = sorted(b.rank for b in plan.spec.ranks if b.device.partition("/")[0] == host)
    here = variables.get("LOCAL_WORLD_SIZE", "")
    if here.isdigit() and int(here) < len(ranks):
        raise InvalidInputError(
            f"the plan has {len(ranks)} ranks on host {host}, {here} processes were started there: "
            f"start it with --nproc-per-node {len(ranks)}"
        )
    if int(local) >= len(ranks):
        return None
    return replace(environment, rank=ranks[int(local)], world_size=len(plan.spec.ranks))
