"""What each wish of a request costs: the best plan without it, by searching again.

The plan that was chosen is where each of these searches starts: what cannot be better than it is
not looked at, so a wish that costs nothing is soon known to.
"""

from __future__ import annotations

import time
from dataclasses import replace

from planner.fallbacks import describe
from planner.limits import Limit, LimitKind, wishes, without
from planner.request import Split
from planner.search import Search
from planner.searchrecord import WishPrice
from planner.solvers.base import TOLERANCE
from planner.split_prices import why_no_split
from profiler.errors import InvalidInputError

TIME_FRACTION = 0.3
"""Of the time limit that pricing all wishes may take, on top."""

MAX_DEVICES = 256
"""Of more devices, no wish is priced by searching again."""


def wish_prices(search: Search) -> tuple[WishPrice, ...]:
    """A price for every wish of the request, in its order."""
    asked = list(wishes(search.request))
    end = time.monotonic() + TIME_FRACTION * search.request.limits.time_s
    return tuple(
        _price(search, wish, end=end, left=len(asked) - at) for at, wish in enumerate(asked)
    )


def _price(search: Search, wish: Limit, *, end: float, left: int) -> WishPrice:
    assert search.best is not None
    ours = search.best.objective_s
    useless = _useless(search, wish)
    if useless:
        return _priced(wish, verdict="free", note=useless)
    if len(search.best.problem.devices) > MAX_DEVICES:
        return _priced(wish, verdict="skipped", note=f"more than {MAX_DEVICES} devices")
    remaining = end - time.monotonic()
    if remaining <= 0:
        return _priced(wish, verdict="skipped", note="no time was left; raise limits.time_s")
    limits = search.request.limits.replaced(time_s=remaining / left)
    request = without(search.request, [wish]).replaced(limits=limits)
    again = Search(
        search.profile, request, search.cluster, targets=search.targets, known=search.best
    )
    try:
        again.run()
    except InvalidInputError as error:
        return _priced(wish, verdict="skipped", note=str(error).splitlines()[0])
    assert again.best is not None
    theirs, bound_s = again.best.objective_s, again.bound_s
    if search.best.problem.microbatch not in again.results:
        bound_s = min(bound_s, search.bound_s)  # what was proved of the size that was asked for
    gains = theirs < ours * (1 - TOLERANCE)
    proved = theirs - bound_s <= TOLERANCE * theirs
    return _priced(
        wish,
        verdict="costs" if gains else "free" if proved else "open",
        objective_s=theirs,
        bound_s=bound_s,
        gain_s=ours - theirs if gains else 0.0,
        plan=describe(again.best) if gains else None,
    )


def _useless(search: Search, wish: Limit) -> str:
    """Why leaving out the wish adds no plan at all, if it is plain."""
    assert search.best is not None
    problem = search.best.problem
    if wish.kind is LimitKind.SPLITS:
        allowing = replace(problem, request=without(search.request, [wish]))
        return why_no_split(allowing, Split(wish.subject))
    if wish.kind is LimitKind.MAX_BYTES:
        usable = problem.cluster.device[wish.subject].usable_bytes
        return "the device has no more anyway" if usable <= (wish.now or 0) else ""
    return ""


def _priced(wish: Limit, **figures: object) -> WishPrice:
    return WishPrice.model_validate(
        {"kind": wish.kind.value, "wish": wish.text, "subject": wish.subject, **figures}
    )
