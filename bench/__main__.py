"""Run a study: ``python bench NAME [options]``; without a name, list them."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STUDIES = {path.stem: path for path in sorted((HERE / "studies").glob("*.py"))}


def first_line(path: Path) -> str:
    """What a study is about, without running it."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("python bench NAME [options]; NAME --help tells more", end="\n\n")
        print("\n".join(f"{name:24} {first_line(path)}" for name, path in STUDIES.items()))
        return
    if name not in STUDIES:
        sys.exit(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    # for the study and for the processes that it starts: the kit, and the tests' 50-digit oracle
    paths = [str(HERE), str(HERE.parent / "tests" / "support")]
    sys.path[:1] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    sys.argv[0:2] = [f"bench {name}"]
    runpy.run_path(str(STUDIES[name]), run_name="__main__")


if __name__ == "__main__":
    main()
