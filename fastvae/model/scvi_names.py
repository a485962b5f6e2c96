"""Names of scvi-tools: arguments of the public methods that have other names here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from .._words import closest

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SAME = {
    "adata": "data",
    "indices": "cells",
    "gene_list": "genes",
    "gene_likelihood": "reconstruction_loss",
    "lr": "learning_rate",
    "dir_path": "folder",
    "reference_model": "reference",
}
"""Names of scvi-tools, and the arguments that mean the same."""

OTHERWISE = {
    "accelerator": "give device=, such as 'cpu' or 'cuda'",
    "devices": "give device=, such as 'cuda:0'; for several start the program with torchrun",
    "plan_kwargs": "give what is in it as arguments of fit, such as learning_rate=",
    "datasplitter_kwargs": "give train_size= and seed=",
    "validation_size": "the cells that train_size= leaves are for validation",
    "shuffle_set_split": "the split is random; seed= decides it",
    "check_val_every_n_epoch": "every epoch is validated; leave it out",
    "early_stopping_monitor": "early stopping looks at the validation ELBO; leave it out",
    "enable_progress_bar": "give progress=",
    "silent": "nothing is printed; leave it out",
    "dataloader": "give data= and cells=",
    "unfrozen": "give freeze=False",
    "inplace_subset_query_vars": "genes are matched by name; leave it out",
    "save_anndata": "no counts are saved; give them to Model.load",
    "prefix": "name the folder instead",
}
"""What to do about arguments of scvi-tools that have no equal."""


def with_scvi_names(
    collected: Iterable[str] = (),
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let a method take the names in `SAME` too, and say what is wrong with other arguments.

    Parameters
    ----------
    collected
        Names that the method takes as ``**keywords``.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        own = [one.name for one in signature.parameters.values() if one.kind in kinds]
        known = [*own[1:], *collected]  # the first is self or cls
        method = function.__name__
        label = "Model()" if method == "__init__" else f"Model.{method}()"

        @wraps(function)
        def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            keywords = own_names(label, known, kwargs)
            try:
                signature.bind(*args, **keywords)
            except TypeError as error:
                raise TypeError(f"{label}: {error}") from None
            return function(*args, **keywords)

        return called

    return decorate


def own_names(label: str, known: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments by the names that they have here.

    Parameters
    ----------
    label
        The method, as messages call it.
    known
        The names that it takes.

    Raises
    ------
    TypeError
        It takes no argument of this name, or one is given under both names.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        here = name if name in known else SAME.get(name, name)
        if here not in known:
            raise TypeError(f"{label} has no argument {name!r}{_hint(name, known)}")
        if here != name and here in given:
            raise TypeError(f"{label}: {name} and {here} are one argument; give one of them")
        found[here] = value
    return found


def _hint(name: str, known: list[str]) -> str:
    if name in OTHERWISE:
        return f"; {OTHERWISE[name]}"
    meant = closest(known, name)
    return "" if meant is None else f"; did you mean {meant!r}?"
