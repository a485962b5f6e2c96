"""Triton's interpreter without what it does again and again: half of the kernels' time there."""

from __future__ import annotations

import functools


def patch_language_once() -> None:
    """Let a launch exchange the functions of ``triton.language`` once for each module of kernels.

    The interpreter does so at each call of a device function too, over a thousand names each time,
    though nothing is put back before the launch ends.
    """
    from triton.runtime import interpreter

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()  # modules, by the identity of their globals, in this launch

    @functools.wraps(patch)
    def patch_new(fn):
        module = id(fn.__globals__)
        if module in patched:
            return None
        patched.add(module)
        return patch(fn)

    @functools.wraps(launch)
    def launch_anew(self, *args, **kwargs):
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_anew
