"""The mark of figures that nobody measured: where they come from, and how far off they may be."""

from __future__ import annotations

from pydantic import Field

from profiler.documents import Record


class Hypothetical(Record):
    """Figures of a device or link that is not there as given; ``basis`` says what they rest on.

    The true times are expected between ``low`` and ``high`` times the ones given.
    """

    basis: str = Field(min_length=1)
    low: float = Field(default=1.0, gt=0, le=1)
    high: float = Field(default=1.0, ge=1)

    def also(self, basis: str) -> Hypothetical:
        """The same range, with a second reason why it is no measurement."""
        return self.replaced(basis=f"{self.basis}; {basis}")


def marked(before: Hypothetical | None, basis: str) -> Hypothetical:
    """The mark of figures changed once more, for ``basis``."""
    return Hypothetical(basis=basis) if before is None else before.also(basis)
