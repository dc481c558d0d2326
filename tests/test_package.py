"""What is installed, and what it costs to start."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jzi

ROOT = Path(jzi.__file__).parent


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("argument", ["--help", "locate --help", "demo --help", "--version"])
def test_help_imports_nothing_heavy(argument: str) -> None:
    code = (
        "import sys\nfrom jzi.cli import main\n"
        f"try: main({argument.split()!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'zarr', 'rasterio', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    assert fresh(code).strip().endswith("HEAVY []")


def test_the_store_needs_no_torch() -> None:
    modules = [f"jzi.store.{module.name}" for module in pkgutil.iter_modules([str(ROOT / "store")])]
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert fresh(code).strip() == "[]"


def test_imports_point_one_way() -> None:
    """Commands and demo may use all rooms, serve decode, decode encode, encode store, and never the other way.

    Fine-tuning alone, which trains the decoder with the encoder, looks from encode into decode.
    """
    order = ("store", "encode", "decode", "serve", "demo", "commands")
    fine_tuning = {"finetune.py", "finetune_config.py", "joint.py", "trainer.py", "training_area.py"}
    for place, room in enumerate(order[:4]):
        for file in (ROOT / room).glob("*.py"):
            found = set(re.findall(r"(?:from|import) jzi\.(\w+)", file.read_text()))
            if file.name in fine_tuning:
                found.discard("decode")
            assert not found & {*order[place + 1 :], "cli"}, file


def every_module() -> list[str]:
    rooms = ("store", "encode", "decode", "serve", "demo", "commands")
    return [f"jzi.{room}.{module.name}" for room in rooms for module in pkgutil.iter_modules([str(ROOT / room)])]


@pytest.mark.parametrize("name", ["jzi", *every_module()])
def test_examples_in_docstrings_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert not failures


def test_every_package_of_the_repository_is_listed_for_installation() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {f"jzi.{path.parent.name}" for path in ROOT.glob("*/__init__.py")}
    assert set(listed) == {"jzi", *rooms}
