"""Damaged folders: the right answer or one clear error, and never a crash, a hang or a traceback.

FASTVAE_FUZZ=N tries N of them instead of a few hundred.
"""

from __future__ import annotations

import fuzzing
import pytest

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="limits a process' memory")


def test_damaged_folders() -> None:
    outcome = fuzzing.fuzz("fuzz_folders", range(fuzzing.rounds(400)))
    print(outcome)
    assert not outcome.faults, str(outcome)
    assert outcome.words["read"] > 20
    assert outcome.words["refused"] > 100


def test_every_fault_is_noticed() -> None:
    outcome = fuzzing.fuzz("fuzz_selftest", range(7), seconds=3, megabytes=512)
    assert outcome.words == {"fine": 2}
    kinds = {number: text.partition(":")[0] for number, text in outcome.faults.items()}
    expected = {1: "crash", 2: "hang", 3: "traceback", 4: "wrong answer", 5: "traceback"}
    assert kinds == expected
    assert "SIGSEGV" in outcome.faults[1]
    assert "MemoryError" in outcome.faults[5]
