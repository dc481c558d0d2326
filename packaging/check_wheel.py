"""Install a wheel into a clean environment and use it: python packaging/check_wheel.py dist

Its dependencies are those of the Python that runs this, which spares downloading them: what the wheel itself lacks, or
has too much, is seen all the same. `pip install -c constraints.txt dist/*.whl` is the whole test.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Folders of the repository that are not part of the package.
NOT_INSTALLED = ("benchmarks", "docs", "examples", "packaging", "tests")

_IMPORT_EVERYTHING = """
import importlib, pkgutil, jzi
names = [module.name for module in pkgutil.walk_packages(jzi.__path__, "jzi.") if module.name != "jzi.__main__"]
for name in names:
    importlib.import_module(name)
print(len(names), "modules of", jzi.__path__[0])
"""


def check_contents(wheel: Path) -> None:
    """Compare the files of a wheel with those of the repository.

    Raises:
        SystemExit: a file is missing, or one is there that should not be.
    """
    names = set(zipfile.ZipFile(wheel).namelist())
    if strange := [name for name in names if name.split("/")[1] in NOT_INSTALLED]:
        raise SystemExit(f"{wheel.name} contains {sorted(strange)[:3]}, which is not part of the package")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = set()
    for package in settings["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in ("*.py", *settings["package-data"].get(package, ())):
            found = [path for path in folder.glob(pattern) if path.is_file()]
            if not found:
                raise SystemExit(f"{package} has no file {pattern}, which pyproject.toml names")
            expected |= {f"jzi/{path.relative_to(ROOT).as_posix()}" for path in found}
    if missing := expected - names:
        raise SystemExit(f"{wheel.name} lacks {sorted(missing)[:3]}")


def check_installed(wheel: Path) -> None:
    """Install a wheel into an empty environment, run its commands and import all of its modules.

    Raises:
        SystemExit: one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        site = sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder})
        _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
        (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        version = _run(Path(folder) / "bin" / "jzi", "--version")
        if wheel.name.split("-")[1] not in version:
            raise SystemExit(f"{wheel.name} says that it is {version}")
        _run(Path(folder) / "bin" / "jzi", "--help")
        imported = _run(python, "-c", _IMPORT_EVERYTHING)
        if folder not in imported:
            raise SystemExit(f"not the wheel was imported, but {imported}")
        print(f"{wheel.name}: installed, {version.strip()}, {imported.split(' of ')[0]} imported")


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=tempfile.gettempdir(), env={"PATH": "/usr/bin:/bin"}, text=True,
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:3]))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    (built,) = Path(sys.argv[1]).resolve().glob("*.whl")
    check_contents(built)
    check_installed(built)
