"""Where things are, seen from the tests."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
LEGACY = FIXTURES / "legacy"
BENCH, DOCS = ROOT / "bench", ROOT / "docs"
