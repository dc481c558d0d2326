"""Check the safetensors files of model folders: names, shapes and types before tensors are read, then their values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jzi.errors import ModelError, first_line
from jzi.store.model_config import HINT
from jzi.store.printable import listed

#: Types of weights and embeddings, by the names of safetensors.
FLOATS = ("F16", "F32")

Shape = tuple[int, ...]


def check_header(
    path: Path,
    shapes: Mapping[str, Shape],
    types: Mapping[str, tuple[str, ...]] | None = None,
    optional: Mapping[str, Shape] | None = None,
) -> dict[str, str]:
    """Check the names, shapes and types of the tensors of a file, without reading them; returns their types.

    Args:
        path: the file.
        shapes: shape of each tensor that the file must hold.
        types: the types that a tensor may have, by its name; `FLOATS` by default.
        optional: shape of each tensor that it may hold besides.

    Raises:
        ModelError: the file cannot be read, lacks a tensor, holds another one, or has one of another shape or type.
    """
    allowed = {**shapes, **(optional or {})}
    try:
        with safe_open(path, "np") as file:
            names = set(file.keys())
            tensors = {name: file.get_slice(name) for name in sorted(names & allowed.keys())}
            actual = {name: (tuple(each.get_shape()), str(each.get_dtype())) for name, each in tensors.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}): {HINT}") from error
    if absent := sorted(shapes.keys() - names):
        raise ModelError(f"{path} lacks the tensor {absent[0]!r:.60}: {HINT}")
    if unknown := sorted(names - allowed.keys()):
        raise ModelError(f"{path} has a tensor {unknown[0]!r:.60} that does not belong to its model: {HINT}")
    for name, (shape, kind) in actual.items():
        kinds = (types or {}).get(name, FLOATS)
        if shape != tuple(allowed[name]) or kind not in kinds:
            raise ModelError(
                f"{path} has {name} of shape {shape!s:.60} and type {kind}, not {tuple(allowed[name])} and "
                f"{' or '.join(kinds)}: {HINT}"
            )
    return {name: kind for name, (_, kind) in actual.items()}


def check_finite(path: Path, tensors: Mapping[str, Any]) -> None:
    """Check that all values of tensors are finite.

    Args:
        path: the file that they were read from, for the error message.
        tensors: arrays, or torch tensors on the CPU, by name.

    Raises:
        ModelError: a value is nan or infinite.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(np.asarray(tensor)).all():
            raise ModelError(f"{path} has values in {name} that are not finite: {HINT}")


def check_entries(path: Path, shapes: Mapping[str, Shape], expected: Mapping[str, Shape], model: str) -> None:
    """Check the entries of a checkpoint of other software against those of a model.

    Args:
        path: the checkpoint.
        shapes: shape of each entry of the checkpoint.
        expected: shape of each entry of the model.
        model: what the model is, for the error message.

    Raises:
        ModelError: entries are missing, unknown or of a wrong shape; all are named, up to 20 of each kind.
    """
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "extra": [name for name in shapes if name not in expected],
        "wrong shape": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    details = "; ".join(f"{kind}: {listed(names, 20)}" for kind, names in faults.items() if names)
    if details:
        raise ModelError(f"{path} does not fit {model}; {details}")
