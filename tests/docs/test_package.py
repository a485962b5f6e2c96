"""The package as installed: light to import, complete, tidy."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from places import ROOT

import fastvae
from fastvae import _files


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_import_is_light():
    assert not modules_after("import fastvae") & {"torch", "numpy", "triton", "anndata", "pandas"}


def test_the_modules_need_only_torch():
    heavy = {"triton", "anndata", "matplotlib", "h5py", "pandas", "rich", "typer"}
    assert not modules_after("from fastvae import VAE, functional, distributions, nn") & heavy


def test_every_public_name_exists():
    for name in fastvae.__all__:
        assert getattr(fastvae, name) is not None
    assert set(fastvae.__all__) <= set(dir(fastvae))
    assert fastvae.__version__ == version("fastvae-scvi")
    with pytest.raises(AttributeError, match="no attribute 'Vae'"):
        fastvae.Vae  # noqa: B018


FOREIGN = '"""Another project."""\n__version__ = "0.1.0"\n'


@pytest.mark.parametrize("content", [FOREIGN, None])
@pytest.mark.parametrize(
    "module", ["fastvae.cli", "fastvae.__main__", "fastvae.integrations.scvi_tools"]
)
def test_another_distribution_of_that_name_is_named(tmp_path, content, module):
    """Its `__init__` stands in the place of ours, or went with it when it was uninstalled."""
    shutil.copytree(ROOT / "fastvae", tmp_path / "fastvae")
    (tmp_path / "fastvae" / "integrations" / "__init__.py").unlink()  # both have one
    ours = tmp_path / "fastvae" / "__init__.py"
    ours.unlink() if content is None else ours.write_text(content)
    what = "__init__.py is missing" if content is None else f"{ours} is another project's"
    # without site, which would find the package that is installed
    run = [sys.executable, "-S", "-c", f"import {module}"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert what in last
    assert last.endswith("pip uninstall -y fastvae fastvae-scvi, then pip install fastvae-scvi")


def test_no_text_tells_people_to_install_the_other_distribution():
    wrong = re.compile(r"pip install [^\n&]*\bfastvae(?!-scvi)\b(?![./-])")
    assert wrong.search("pip install -U 'fastvae[scvi]'")
    folders = ("fastvae", "kernels", "docs", "bench", "tests/cli")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*files, *ROOT.glob("*.*")]
        if path.suffix in (".py", ".md", ".toml", ".yml", ".cff", ".txt")
        for match in wrong.finditer(path.read_text())
    ]
    assert found == []


def test_files_stay_readable_in_one_sitting():
    long = [
        f"{path.relative_to(ROOT)}: {n}"
        for folder in ("fastvae", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 600
    ]
    assert not long


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def write(content, fail):
        with _files.atomic_path(target) as path:
            path.write_text(content)
            if fail:
                raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write("half", fail=True)
    assert target.read_text() == "old"
    write("new", fail=False)
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_outputs_are_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_text("x")
    with pytest.raises(fastvae.InputError, match="already exists and is not empty"):
        _files.check_writable_folder(tmp_path / "run")
    _files.check_writable_folder(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "kept").read_text() == "x"
    with pytest.raises(fastvae.InputError, match="is a file"):
        _files.check_writable_folder(tmp_path / "run" / "kept")
    with pytest.raises(fastvae.InputError, match="cannot be written"):
        _files.check_writable_folder(tmp_path / "run" / "kept" / "below")
    with pytest.raises(fastvae.InputError, match="already exists"):
        _files.check_new_file(tmp_path / "run" / "kept")
    with pytest.raises(fastvae.InputError, match="is a folder"):
        _files.check_new_file(tmp_path / "run")
    assert _files.check_new_file(tmp_path / "a" / "b.h5ad") == tmp_path / "a" / "b.h5ad"


def test_no_version_of_triton_is_asked_for_beside_torch():
    """Each CUDA build of torch requires one version of triton: pip cannot meet a second."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for file in [ROOT / "constraints.txt", *ROOT.glob(".ci/*.txt")]:
        lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
        asked += [line for line in lines if line]
    requirements = [Requirement(line) for line in asked]
    assert any(r.name == "torch" and r.specifier for r in requirements)
    assert [str(r) for r in requirements if r.name == "triton" and r.specifier] == []


def test_the_promised_minima_are_what_the_oldest_set_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {r.name: Version(next(iter(r.specifier)).version) for r in tested}
    for requirement in map(Requirement, project["dependencies"] + extras["test"] + extras["hvg"]):
        if requirement.name in ("triton", "build", "ruff", "mypy"):  # torch's own, and tools
            continue
        (least,) = requirement.specifier
        assert least.operator == ">="
        assert Version(least.version) == pinned[requirement.name], requirement.name
