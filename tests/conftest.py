"""Options and fixtures of all tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.warm import WarmPopen, close_servers

# A job that a shell put in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

STARTERS = ("executor.local.Popen", "profiler.companion.Popen", "profiler.residency.Popen")
"""Where this package starts Python processes for ranks and like ranks."""

GOLDEN = Path(__file__).parent / "golden"

# Machines that run tests are busy: no deadline for one example; the same examples every time.
settings.register_profile("apportion", deadline=None, derandomize=True)
settings.load_profile("apportion")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden/ anew instead of comparing; review the difference like code",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name in ``tests/golden/``."""
    update = request.config.getoption("--update-golden")

    def compare(name: str, text: str) -> None:
        file = GOLDEN / name
        if update:
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"no golden file {name}: run pytest --update-golden"
        assert text == file.read_text(encoding="utf-8")

    return compare


@pytest.fixture(autouse=True, scope="session")
def _warm_ranks() -> Iterator[None]:
    """Ranks' starters are forked from a process that has imported torch (see ``support.warm``).

    Tests of starting itself use ``cold_ranks``; commands run as processes of their own start their
    ranks as everywhere.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "torch" in sys.modules:  # else only the planner is tested, which loads none of them
            for name in STARTERS:
                patch.setattr(name, WarmPopen)
        yield
    close_servers()


@pytest.fixture
def cold_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are started as users start them."""
    for name in STARTERS:
        monkeypatch.setattr(name, subprocess.Popen)
