"""What a 10x HDF5 file must look like before anything in it is decoded."""

from __future__ import annotations

from ...errors import InputError
from .matrix_structure import check_compressed
from .node import Node, check_complete, check_held, length_of, where


def check_tenx_v3(root: Node) -> None:
    """Check a Cell Ranger file with one group ``matrix``.

    Raises
    ------
    InputError
        The first thing that is wrong.
    """
    matrix = root.child("matrix")
    assert matrix is not None, "the caller has looked"
    features = matrix.child("features")
    if features is None:
        raise InputError(f"{root.source} is damaged: matrix has no features; download it again")
    if features.is_array:
        raise _damaged_tenx(features, "is an array, not a group")
    names = ["id", "name", *(n for n in ("feature_type", "genome") if n in features.names())]
    _check_tenx(matrix, [_need(features, name) for name in names])


def check_tenx_v2(root: Node, genome: str) -> None:
    """Check the group of one genome of a Cell Ranger file.

    Raises
    ------
    InputError
        The first thing that is wrong.
    """
    matrix = root.child(genome)
    assert matrix is not None, "the caller has looked"
    _check_tenx(matrix, [_need(matrix, name) for name in ("genes", "gene_names")])


def _check_tenx(matrix: Node, features: list[Node]) -> None:
    barcodes, shape = _need(matrix, "barcodes"), _need(matrix, "shape")
    if shape.shape != (2,) or shape.kind not in "iu":
        raise _damaged_tenx(shape, f"has shape {shape.shape} of {shape.type_name}, not two numbers")
    for names in (barcodes, *features):
        if names.shape is None or len(names.shape) != 1 or names.kind != "T":
            raise _damaged_tenx(names, f"has shape {names.shape} of {names.type_name}, not texts")
        check_held(names)
        check_complete(names)
        if names is not barcodes and names.shape != features[0].shape:
            raise _damaged_tenx(
                names,
                f"has {length_of(names)} entries, {features[0].path} {length_of(features[0])}",
            )
    check_compressed(matrix, where(matrix))


def _need(group: Node, name: str) -> Node:
    found = group.child(name)
    if found is None or not found.is_array:
        state = "has no" if found is None else "has a group in place of"
        raise _damaged_tenx(group, f"{state} {name}")
    return found


def _damaged_tenx(node: Node, what: str) -> InputError:
    return InputError(
        f"{node.source} cannot be read: it is damaged or incomplete ({node.path} {what}); "
        "copy or download it again"
    )
