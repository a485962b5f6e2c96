"""`load_without_code`: reads checkpoints of other programs without running code from them."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError

_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError)


class Skipped:
    """Placeholder for an object that is not read; its arguments and state are dropped."""

    def __new__(cls, *_: Any, **__: Any) -> Skipped:
        """Accept any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Accept any state."""


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Replace a dictionary with a default; its entries are added afterwards."""
    return {}


def _harmless() -> list[Any]:
    """Return what arrays and dictionaries are made of, by the names of numpy 1 and 2."""
    multiarray: Any = importlib.import_module(np.array([]).__reduce__()[0].__module__)
    named: list[tuple[str, Any]] = []
    for code in "?bhilqBHILQefdOSU":
        kind = type(np.dtype(code))
        named.append((f"numpy.dtypes.{kind.__name__}", kind))
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        named.append((f"{module}._reconstruct", multiarray._reconstruct))
        named.append((f"{module}.scalar", multiarray.scalar))
    named += [("numpy.ndarray", np.ndarray), ("numpy.dtype", np.dtype)]
    named += [("builtins.bytes", bytes), ("builtins.dict", dict)]
    named.append(("scvi.utils._attrdict.attrdict", dict))
    named.append(("collections.defaultdict", _plain_dict))
    return [(thing, name) for name, thing in named]


def load_without_code(path: Path) -> Any:
    """Read a file of ``torch.save`` with ``weights_only=True``.

    Numbers, texts, containers, tensors and numpy arrays are read. Anything else would have to
    import and call code that the file names; a `Skipped` takes its place.

    Raises
    ------
    InputError
        The file is not there, damaged, or cannot be read in this way.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file written by torch.save")
    try:
        with torch.serialization.safe_globals(_allowed(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} cannot be read without running code that it names ({_reason(error)}); where "
            "it was written, save the weights alone: torch.save(vae.state_dict(), FILE)"
        ) from error
    except _DAMAGE as error:
        raise InputError(
            f"{path} is damaged or was not written by torch.save ({_reason(error)}); copy it again"
        ) from error


def _allowed(path: Path) -> list[Any]:
    if not zipfile.is_zipfile(path):
        return []  # before torch 1.6; tensors need no more than torch allows
    harmless = _harmless()
    known = {name for _, name in harmless}
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, EOFError):
        return []  # torch.load says what is wrong
    return [*harmless, *((Skipped, name) for name in unsafe if name not in known)]


def _reason(error: BaseException) -> str:
    """Return the line of torch's message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for number, line in enumerate(lines):
        before, mark, after = line.partition("WeightsUnpickler error:")
        if mark:
            found = after.strip() or (lines[number + 1] if number + 1 < len(lines) else before)
            return found.split(". ")[0].rstrip(".")
    return lines[0].rstrip(".") if lines else type(error).__name__
