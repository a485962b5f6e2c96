"""Values that no argument expects, and a call that must end in time."""

from __future__ import annotations

import datetime
import decimal
import fractions
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from fastvae import InputError


class Hostile:
    """An object that refuses everything it is asked."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("asked")

    __repr__ = __bool__ = __len__ = __iter__ = __eq__ = _refuse
    __float__ = __index__ = __str__ = __fspath__ = __array__ = _refuse
    __hash__ = object.__hash__


def _nested() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


ODD_VALUES: list[tuple[str, Callable[[], Any]]] = [
    ("None", lambda: None),
    ("true", lambda: True),
    ("false", lambda: False),
    ("zero", lambda: 0),
    ("minus_one", lambda: -1),
    ("huge", lambda: 10**12),
    ("beyond_int32", lambda: 2**31),
    ("beyond_int64", lambda: 2**63),
    ("beyond_uint64", lambda: 2**64),
    ("beyond_float", lambda: 10**400),
    ("beyond_digits", lambda: 10**5000),
    ("very_negative", lambda: -(10**30)),
    ("half", lambda: 0.5),
    ("minus_zero", lambda: -0.0),
    ("large_float", lambda: 1e300),
    ("tiny_float", lambda: 5e-324),
    ("negative_float", lambda: -1e300),
    ("nan", lambda: float("nan")),
    ("inf", lambda: float("inf")),
    ("minus_inf", lambda: float("-inf")),
    ("complex", lambda: 1 + 2j),
    ("fraction", lambda: fractions.Fraction(1, 3)),
    ("decimal_nan", lambda: decimal.Decimal("sNaN")),
    ("empty_text", lambda: ""),
    ("text", lambda: "no such thing"),
    ("text_number", lambda: "3"),
    ("null_character", lambda: "a\0b"),
    ("surrogate", lambda: "\udcff"),
    ("long_text", lambda: "x" * 1_000_000),
    ("numpy_text", lambda: np.str_("b")),
    ("bytes", lambda: b"bytes"),
    ("bytearray", lambda: bytearray(b"ab")),
    ("path", lambda: Path("nowhere") / "at" / "all"),
    ("empty_list", list),
    ("empty_tuple", tuple),
    ("empty_dict", dict),
    ("empty_set", set),
    ("list_of_None", lambda: [None]),
    ("list_of_lists", lambda: [[1], [2, 3]]),
    ("list_of_texts", lambda: ["a", "b"]),
    ("list_of_numbers", lambda: [1, 2.5, -3]),
    ("mixed_list", lambda: [0, "a", None, b"b", 1j]),
    ("list_with_nan", lambda: [float("nan"), 1.0]),
    ("list_of_arrays", lambda: [np.arange(2), np.arange(3)]),
    ("list_of_itself", _nested),
    ("dict_of_text", lambda: {"a": 1}),
    ("dict_of_None", lambda: {None: [1]}),
    ("set_of_texts", lambda: {"a"}),
    ("range", lambda: range(3)),
    ("long_range", lambda: range(10**15)),
    ("slice", lambda: slice(None)),
    ("generator", lambda: (i for i in range(3))),
    ("ellipsis", lambda: ...),
    ("a_class", lambda: int),
    ("a_function", lambda: len),
    ("object", object),
    ("hostile", Hostile),
    ("array_0d", lambda: np.array(1)),
    ("array_0d_nan", lambda: np.array(np.nan)),
    ("array_empty", lambda: np.array([])),
    ("array_1d", lambda: np.arange(3)),
    ("array_one", lambda: np.array([1])),
    ("array_2d", lambda: np.ones((2, 2))),
    ("array_3d", lambda: np.zeros((2, 2, 2))),
    ("array_bool", lambda: np.array([True, False])),
    ("array_text", lambda: np.array(["a", "b"])),
    ("array_object", lambda: np.array([None, 1, "a"], dtype=object)),
    ("array_complex", lambda: np.array([1j, 2])),
    ("array_uint64", lambda: np.array([2**64 - 1], dtype=np.uint64)),
    ("array_fields", lambda: np.zeros(2, dtype=[("a", int), ("b", float)])),
    ("array_dates", lambda: np.array(["2020-01-01", "NaT"], dtype="datetime64[D]")),
    ("numpy_integer", lambda: np.int64(3)),
    ("numpy_float", lambda: np.float32(2.5)),
    ("numpy_bool", lambda: np.bool_(True)),
    ("numpy_void", lambda: np.void(b"ab")),
    ("numpy_masked", lambda: np.ma.masked),
    ("tensor_0d", lambda: torch.tensor(3)),
    ("tensor_1d", lambda: torch.tensor([1.5, 2.0])),
    ("tensor_2d", lambda: torch.zeros(2, 2)),
    ("tensor_complex", lambda: torch.tensor(1j)),
    ("tensor_meta", lambda: torch.zeros(2, device="meta")),
    ("tensor_sparse", lambda: torch.eye(2).to_sparse()),
    ("series", lambda: pd.Series([1, 2])),
    ("index", lambda: pd.Index(["a", "b"])),
    ("categorical", lambda: pd.Categorical(["a", None])),
    ("data_frame", lambda: pd.DataFrame({"a": [1, 2]})),
    ("pandas_missing", lambda: pd.NA),
    ("no_time", lambda: pd.NaT),
    ("date", lambda: datetime.date(2020, 1, 1)),
    ("sparse_matrix", lambda: sp.csr_matrix(np.eye(2))),
    ("device", lambda: torch.device("meta")),
    ("dtype", lambda: np.dtype("f4")),
    ("module", lambda: np),
]


class TooSlow(BaseException):
    """A call did not end in time; not an Exception, so that nothing on the way takes it for one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` in the block when the time is over."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def complaint(call: Callable[[], Any], names: tuple[str, ...], seconds: float) -> str | None:
    """Return what is wrong with the way a call ends; None for an answer or a clear refusal.

    Parameters
    ----------
    call
        Ends in an answer or in an `InputError` that has one of `names` in its message.
    """
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except InputError as error:
        text = str(error)
        if len(text) > 2000:
            return f"a message of {len(text):,} characters: {text[:200]}"
        if len(text) < 15 or not any(name in text for name in names):
            return f"does not name the argument: {text}"
        return None
    except TooSlow:
        return f"did not end within {seconds:g} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        at = error.__traceback__
        where = ""
        while at is not None:
            name = at.tb_frame.f_code.co_filename
            if "/fastvae/" in name:
                where = f"{name.rsplit('/fastvae/', 1)[1]}:{at.tb_lineno}"
            at = at.tb_next
        try:
            return f"{type(error).__name__} in {where}: {str(error)[:150]}"
        except Exception:
            return f"{type(error).__name__} in {where}"
    return None
