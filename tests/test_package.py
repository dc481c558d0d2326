"""What is installed, and what it costs to start."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest

import jzi
from jzi.tests.children import run_python

ROOT = Path(jzi.__file__).parent


def fresh(code: str) -> str:
    return run_python(code).output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom jzi.cli import main\n"
        "for arguments in (['--help'], ['locate', '--help'], ['demo', '--help'], ['--version']):\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'zarr', 'rasterio', 'numpy', 'pandas', 'pydantic', 'cv2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    assert fresh(code).strip().endswith("HEAVY []")


#: What the answer to one photo does without: each takes a tenth of torch's own import or more.
NOT_TO_LOCATE = ("accelerate", "huggingface_hub", "pandas", "rasterio", "torch._dynamo", "transformers", "zarr")


@pytest.mark.parametrize("how", ["the command", "Python"])
def test_locating_a_photo_imports_no_library_that_it_does_not_use(
    how: str, trained_folder: Path, town_folder: Path
) -> None:
    model, photo = trained_folder / "model", next((town_folder / "photos").rglob("*.jpg"))
    calls = {
        "the command": f"from jzi.cli import main\ntry: main(['locate', {str(photo)!r}, '--model', {str(model)!r}])\n"
        "except SystemExit as error: assert not error.code",
        "Python": f"import jzi\nprint(jzi.load({str(model)!r}).locate({str(photo)!r}))",
    }
    code = f"import sys\n{calls[how]}\nprint('LOADED', sorted(set({NOT_TO_LOCATE!r}) & set(sys.modules)))"
    assert fresh(code).strip().endswith("LOADED []")


def test_the_store_needs_no_torch() -> None:
    modules = [f"jzi.store.{module.name}" for module in pkgutil.iter_modules([str(ROOT / "store")])]
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert fresh(code).strip() == "[]"


def packages() -> list[str]:
    """Dotted names of the packages and of the packages in them."""
    files = [*ROOT.glob("*/__init__.py"), *ROOT.glob("*/*/__init__.py")]
    return sorted(".".join(path.parent.relative_to(ROOT).parts) for path in files)


def every_module() -> list[str]:
    modules = [module.name for module in pkgutil.iter_modules([str(ROOT)]) if not module.ispkg]
    for package in packages():
        modules += [
            package,
            *(
                f"{package}.{module.name}"
                for module in pkgutil.iter_modules([str(ROOT / package.replace(".", "/"))])
                if not module.ispkg
            ),
        ]
    return [f"jzi.{module}" for module in modules if module != "__main__"]


@pytest.mark.parametrize("name", ["jzi", *every_module()])
def test_examples_in_docstrings_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert not failures


def public_members(name: str) -> Iterator[tuple[str, object]]:
    """A name that jzi exports, and the public methods and properties that it or its own base classes define."""
    exported = getattr(jzi, name)
    yield name, exported
    if inspect.isclass(exported):
        for base in exported.__mro__:
            if base.__module__.startswith("jzi."):
                for member, value in vars(base).items():
                    described = isinstance(value, property | cached_property | classmethod | staticmethod)
                    if not member.startswith("_") and (described or inspect.isfunction(value)):
                        yield f"{name}.{member}", value


@pytest.mark.parametrize("name", [name for name in jzi.__all__ if name != "__version__"])
def test_the_public_api_is_documented(name: str) -> None:
    for member, value in public_members(name):
        assert (value.__doc__ or "").strip(), f"{member} has no docstring"


def test_every_package_of_the_repository_is_listed_for_installation() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == {"jzi", *(f"jzi.{package}" for package in packages())}
