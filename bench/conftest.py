"""`pytest bench/`: options, one line per contender of each case, and the JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _kit.environment import device_facts, devices
from _kit.turns import CLOCK, Turns

COLLECTED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastvae bench")
    group.addoption("--quick", action="store_true", help="small sizes: under 3 minutes on 2 cores")
    group.addoption("--bench-out", type=Path, metavar="DIR", help="write one JSON file per module")
    group.addoption("--overwrite", action="store_true", help="replace JSON files that are there")
    group.addoption("--threads", type=int, help="of torch; every core by default")


def pytest_report_header(config: pytest.Config) -> str:
    facts = device_facts()
    return f"compared on: {facts['device']} ({', '.join(devices())})"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    cases = metafunc.module.cases(metafunc.config.getoption("--quick"))
    pairs = [(case, provider) for case in cases for provider in case.providers]
    names = [f"{case}-{provider}".replace(" ", "-") for case, provider in pairs]
    metafunc.parametrize(("case", "provider"), pairs, ids=names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.now))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse before measuring what could not be written after."""
    out = session.config.getoption("--bench-out")
    if out is None or session.config.getoption("--overwrite"):
        return
    names = {Path(str(item.path)).stem.removeprefix("bench_") for item in session.items}
    if there := sorted(str(out / f"{n}.json") for n in names if (out / f"{n}.json").exists()):
        raise pytest.UsageError(f"{', '.join(there)} exist; pass --overwrite to replace them")


def selected(items: list[pytest.Item]) -> dict[Any, set[str]]:
    """The contenders of each case whom -k leaves."""
    found: dict[Any, set[str]] = {}
    for item in items:
        chosen: Any = getattr(item, "callspec", None)
        if chosen is not None and "case" in chosen.params:
            found.setdefault(chosen.params["case"], set()).add(chosen.params["provider"])
    return found


@pytest.fixture(scope="session")
def turns(request: pytest.FixtureRequest) -> Iterator[Turns]:
    """Hold each contest once, and write what came of them in the end."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads") or os.cpu_count() or 1)
    turns = Turns(request.config.getoption("--quick"), selected(request.session.items))
    yield turns
    out: Any = request.config.getoption("--bench-out")
    if out is not None:
        turns.write(out)
    torch.set_num_threads(before)
