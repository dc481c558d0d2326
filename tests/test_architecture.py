"""Imports point one way: ARCHITECTURE.md draws the order of the packages, and this test enforces it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jzi

ROOT = Path(jzi.__file__).parent

#: From the top down. A package imports from the lines below its own; packages of one line do not import one another.
LAYERS = (
    ("docs", "tests"),
    ("benchmarks",),
    ("__init__", "__main__"),
    ("cli",),
    ("commands",),
    ("demo",),
    ("synth",),
    ("serve",),
    ("ablate",),
    ("workspace",),
    ("datasets", "export", "publish"),
    ("mapillary", "recordings", "overhead"),
    ("curate",),
    ("train",),
    ("evaluate",),
    ("decode", "retrieve", "refine", "rerank"),
    ("vectors",),
    ("locate", "cluster"),
    ("encode", "web"),
    ("store",),
    ("errors", "version"),
)
LINE = {package: line for line, packages in enumerate(LAYERS) for package in packages}

#: Folders of Python files that are not installed and have no `__init__.py`.
SCRIPTS = ("benchmarks", "docs", "tests")

#: Runs `cli`, and is not worth a line in ARCHITECTURE.md.
SCRIPT_ROOTS = {"__main__"}

#: Narrower than the order: what a package may import, and who may import it.
MAY_IMPORT = {"synth": {"store", "encode", "errors", "version"}}
IMPORTED_BY = {"synth": {"demo", "benchmarks", "tests"}}


def packages(root: Path) -> set[str]:
    """The packages and the modules of the root, by the folders and files that are there."""
    folders = {file.parent.name for file in root.glob("*/__init__.py")}
    scripts = {name for name in SCRIPTS if any((root / name).rglob("*.py"))}
    return folders | scripts | {file.stem for file in root.glob("*.py")}


def modules(root: Path) -> dict[str, Path]:
    """Dotted names below `jzi`, and their files; a package has the name of its folder, the root that of `__init__`."""
    found = {file.stem: file for file in root.glob("*.py")}
    for package in sorted(packages(root)):
        for file in (root / package).rglob("*.py"):
            name = file.relative_to(root).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = file
    return found


def imports(module: str, file: Path, names: dict[str, Path]) -> Iterator[str]:
    """The modules of `jzi` that a module imports, wherever in the file: at the top, in functions, for type checkers."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["jzi", *package[: len(package) + 1 - node.level]] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] != "jzi":
                continue
            name = ".".join(parts[1:]) or "__init__"
            if name not in names:  # a class or function of a module
                name = name.rpartition(".")[0] or "__init__"
            yield name if name in names else ".".join(parts[1:])


@cache
def graph(root: Path) -> dict[str, set[str]]:
    names = modules(root)
    return {module: set(imports(module, file, names)) for module, file in names.items()}


def violations(root: Path) -> list[str]:
    """What breaks the contract, one sentence each."""
    here = packages(root)
    sentences = [
        f"{package} is not in LAYERS: give it a line there and in ARCHITECTURE.md" for package in here - {*LINE}
    ]
    for module, targets in graph(root).items():
        package = module.partition(".")[0]
        for target in sorted(targets):
            other = target.partition(".")[0]
            if other not in here:
                sentences.append(f"{module} imports jzi.{target}, which does not exist")
            elif other == package or not {package, other} <= {*LINE}:
                continue
            elif LINE[other] < LINE[package]:
                sentences.append(f"{module} imports {target}, which stands above it")
            elif LINE[other] == LINE[package]:
                sentences.append(f"{module} imports {target}, which stands beside it")
            elif other not in MAY_IMPORT.get(package, {other}) or package not in IMPORTED_BY.get(other, {package}):
                sentences.append(f"{module} imports {target}, which {package} may not use")
    return sorted(sentences)


#: Modules of a folder that a reader surveys at a glance; more are divided into folders.
MOST_MODULES = 16


def test_no_folder_has_more_modules_than_a_reader_surveys() -> None:
    folders = {file.parent for package in packages(ROOT) for file in (ROOT / package).rglob("__init__.py")}
    sizes = {folder.relative_to(ROOT).as_posix(): len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert len(sizes) > 30 and {name: size for name, size in sizes.items() if size > MOST_MODULES} == {}


def test_imports_point_one_way() -> None:
    broken = violations(ROOT)
    assert not broken, "\n" + "\n".join(broken)


def test_the_documentation_draws_the_same_order() -> None:
    drawing = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n## ")[1].split("\n    ")[1:]
    names = [line.split("  ")[0].split("|") for line in drawing]
    lines = {name.strip().removesuffix("/").removesuffix(".py"): line for line, row in enumerate(names) for name in row}
    documented = [package for row in LAYERS for package in row if package in packages(ROOT) - SCRIPT_ROOTS]
    assert documented == sorted(documented, key=lambda package: (lines[package], documented.index(package)))
    for row in LAYERS:
        assert len({lines[package] for package in row if package in documented}) <= 1, row


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_files_that_the_documentation_names_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"`([a-z_]+/[a-z_]+\.(?:py|md))`", text)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    try:
        TopologicalSorter(graph(ROOT)).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_store_names_neither_torch_nor_transformers() -> None:
    for file in (ROOT / "store").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"torch", "transformers"}, file


def test_the_contract_sees_what_it_forbids(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "errors.py": "",
        "attic/__init__.py": "",
        "store/__init__.py": "",
        "store/cache.py": "def late():\n    from jzi.encode import encoder\n",
        "encode/__init__.py": "",
        "encode/encoder.py": "import jzi.errors\nfrom jzi.store import cache, nothing\n",
        "decode/__init__.py": "",
        "decode/model.py": "if TYPE_CHECKING:\n    from ..retrieve.search import search\n",
        "retrieve/__init__.py": "",
        "retrieve/search.py": "from jzi import Locator\nfrom jzi.gone import x\n",
        "synth/__init__.py": "",
        "synth/town.py": "from jzi.decode import model\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == [
        "attic is not in LAYERS: give it a line there and in ARCHITECTURE.md",
        "decode.model imports retrieve.search, which stands beside it",
        "retrieve.search imports __init__, which stands above it",
        "retrieve.search imports jzi.gone.x, which does not exist",
        "store.cache imports encode.encoder, which stands above it",
        "synth.town imports decode.model, which synth may not use",
    ]
    assert graph(tmp_path)["encode.encoder"] == {"errors", "store.cache", "store"}
    cycle = TopologicalSorter(graph(tmp_path))
    try:
        cycle.prepare()
    except CycleError as error:
        assert set(error.args[1]) == {"store.cache", "encode.encoder"}
    else:
        raise AssertionError("store.cache and encode.encoder import one another")
