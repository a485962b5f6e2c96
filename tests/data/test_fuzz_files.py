"""Damaged files of HDF5 and stores of zarr: the right answer or one clear error.

Never a crash, a hang, a traceback or more memory than is due. FASTVAE_FUZZ=N tries N of them
instead of a hundred.
"""

from __future__ import annotations

import fuzzing
import pytest

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="limits a process' memory")


def test_damaged_files() -> None:
    outcome = fuzzing.fuzz("fuzz_files", range(fuzzing.rounds(120)))
    print(outcome)
    assert not outcome.faults, str(outcome)
    assert outcome.words["read"] > 30
    assert outcome.words["refused"] > 40
