"""A page about one run: how it trained, what was learned, and how well it fits the counts."""

from .mixing import mixing_table
from .report import write_report

__all__ = ["mixing_table", "write_report"]
