"""The one place that imports scvi-tools, with an error that says what to install."""

from __future__ import annotations

try:
    import scvi
except ImportError as error:
    raise ImportError(
        "fastvae.integrations.scvi_tools works inside scvi-tools, which cannot be imported "
        f"({error}); install it with: pip install 'fastvae-scvi[scvi]'"
    ) from error

if tuple(int(part) for part in scvi.__version__.split(".")[:2]) < (1, 3):
    raise ImportError(
        f"fastvae.integrations.scvi_tools needs scvi-tools >= 1.3, found {scvi.__version__}; "
        "update it with: pip install -U 'fastvae-scvi[scvi]'"
    )
