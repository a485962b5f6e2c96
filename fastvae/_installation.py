"""An error where another project's files stand in the place of ours.

The distribution ``fastvae`` is another project, with the same package name. Installed over
``fastvae-scvi`` it replaces ``fastvae/__init__.py``; uninstalled, it takes that file along. What is
imported from elsewhere in the package imports this module first.
"""

from __future__ import annotations

import fastvae

if vars(fastvae).get("DISTRIBUTION") != "fastvae-scvi":
    _place = getattr(fastvae, "__file__", None)
    _found = f"{_place} is another project's" if _place else "fastvae/__init__.py is missing"
    raise ImportError(
        f"{_found}: the distribution fastvae was installed beside fastvae-scvi, and both write "
        "into the folder fastvae; repair it with: pip uninstall -y fastvae fastvae-scvi, then "
        "pip install fastvae-scvi"
    )
