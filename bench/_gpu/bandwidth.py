"""The yardstick: what this device's memory gives to a plain copy and to a read-only sum."""

from __future__ import annotations

import torch
from _kit import timing
from _kit.results import Part, Row


def run(part: Part, device: torch.device, tiny: bool) -> None:
    """Copy of 4 GiB (bytes read and written both counted) and sum of 4 GiB of float32."""
    entries = 2**16 if tiny else 2**30

    def fill(row: Row) -> None:
        source = torch.rand(entries, device=device)
        target = torch.empty_like(source)
        functions = {"copy": lambda: target.copy_(source), "read": source.sum}
        times = timing.interleaved(functions, device, 0.05 if tiny else 1.5)
        for name, bytes_ in [("copy", 8.0 * entries), ("read", 4.0 * entries)]:
            rate = bytes_ / times[name]["median_ms"] / 1e6
            row[name] = {**times[name], "gb_per_s": rate}
            part.facts[f"{name}_gb_per_s"] = rate

    part.row("bandwidth", fill, entries=entries)
