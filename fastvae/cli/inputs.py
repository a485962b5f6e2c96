"""Options of the command line that name files, genes and columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .._words import a_few
from ..errors import InputError


def gene_list(path: Path | None, *, fewest: int = 2) -> list[str] | None:
    """Read a list of genes, one per line; empty lines and lines that begin with # are skipped.

    Raises
    ------
    InputError
        It cannot be read, has fewer than `fewest` genes, or one of them twice.
    """
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as a list of genes ({error}); give a text file with one "
            "gene per line"
        ) from error
    genes = [line for line in lines if line and not line.startswith("#")]
    repeated = [gene for gene, count in Counter(genes).items() if count > 1]
    if repeated:
        raise InputError(f"{path} names genes more than once: {a_few(repeated)}; name each once")
    if len(genes) < fewest:
        least = "two are" if fewest == 2 else "one is"
        raise InputError(f"{path} names {len(genes)} genes; at least {least} needed")
    return genes


def assignments(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Split ``FILE=COLUMN`` at the last equals sign.

    Raises
    ------
    InputError
        There is none.
    """
    found = {}
    for text in texts or ():
        name, sign, value = text.rpartition("=")
        if not (sign and name and value):
            raise InputError(f"{option} {text!r} is not of the form FILE=COLUMN")
        found[name] = value
    return found
