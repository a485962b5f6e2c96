"""The table of training options in the guide: ``python docs/options_table.py`` writes it anew."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fastvae._options import Declared, declared_by
from fastvae.train.settings import CheckpointOptions, TrainSettings

PAGE = Path(__file__).resolve().parent / "guide" / "model.md"
BEGIN, END = "<!-- options -->\n", "<!-- end of options -->\n"


def table(classes: Iterable[type] = (TrainSettings, CheckpointOptions)) -> str:
    """Return a row for each option that the classes declare."""
    rows = [_row(one) for cls in classes for one in declared_by(cls)]
    head = [
        "| `fit` | default | `fastvae train` | `fastvae map` | what it does |",
        "|" + 5 * "---|",
    ]
    return "\n".join(head + rows) + "\n"


def _row(one: Declared) -> str:
    option = f"`{one.flag}`"
    if one.command_default != one.default:
        option += f" ({one.command_default:g})"
    commands = [option if name in one.texts.commands else "" for name in ("train", "map")]
    cells = [f"`{one.name}`", f"`{one.default!r}`", *commands, one.texts.help]
    return f"| {' | '.join(cells)} |"


def written_into(page: str) -> str:
    """Return the text of the page with the table as it is now."""
    pattern = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    return pattern.sub(lambda _: f"\n{table()}\n", page)


if __name__ == "__main__":
    PAGE.write_text(written_into(PAGE.read_text()))
