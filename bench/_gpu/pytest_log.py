"""pytest plugin: one line of JSON per finished test, so that a run cut off leaves its results."""

from __future__ import annotations

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    # A test counts once: by its call, or by a set-up or tear-down that did not pass.
    if report.when != "call" and report.outcome == "passed":
        return
    text = str(report.longrepr)[-1200:] if report.failed else ""
    line = {"test": report.nodeid, "outcome": report.outcome, "text": text}
    with open(os.environ["FASTVAE_TEST_LOG"], "a") as log:
        log.write(json.dumps(line) + "\n")


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        report.when = "collect"
        pytest_runtest_logreport(report)
