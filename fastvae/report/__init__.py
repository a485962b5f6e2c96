"""A page about one run: how it trained, what was learned, and how well it fits the counts."""

from .report import write_report

__all__ = ["write_report"]
