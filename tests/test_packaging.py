"""Packages: recipe, container and workflows say the same as pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import jzi
from jzi.cli import main

ROOT = Path(jzi.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Names of conda-forge that differ from those of the Python package index.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "huggingface-hub": "huggingface_hub"}


def recipe() -> dict:
    return yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())


def test_the_conda_recipe_requires_what_the_project_requires() -> None:
    expected = set()
    for requirement in PROJECT["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        expected.add(f"{CONDA_NAMES.get(name, name)} {version}".strip())
    assert set(recipe()["requirements"]["run"]) - {"python >=${{ python_min }}"} == expected


def test_the_conda_recipe_has_the_version_and_the_oldest_python_of_the_project() -> None:
    assert recipe()["context"] == {"version": jzi.__version__, "python_min": PROJECT["requires-python"].strip(">=")}


def test_versions_of_python_are_the_same_in_classifiers_and_in_ci() -> None:
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.", each)]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named


@pytest.mark.parametrize(
    "extra", ["docs", "dist", "test", "dev", "dataset", "reference", "remote", "retrieve", "serve"]
)
def test_every_requirement_is_pinned(extra: str) -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines("constraints.txt")}
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]:
        name = re.match(r"[\w-]+", requirement)[0].lower()  # type: ignore[index]
        assert name in pinned | {"jzi"}, f"constraints.txt has no {name}"


def test_the_container_is_not_run_by_root() -> None:
    users = [line for line in lines("Dockerfile") if line.startswith("USER")]
    assert users == ["USER 1000:1000"]


def test_the_composed_service_has_few_rights_and_bounds() -> None:
    service = yaml.safe_load((ROOT / "packaging" / "compose.yaml").read_text())["services"]["serve"]
    assert (service["user"], service["read_only"], service["cap_drop"]) == ("1000:1000", True, ["ALL"])
    assert all(volume["read_only"] for volume in service["volumes"])
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["environment"]["JZI_TOKEN"].startswith(
        "${JZI_TOKEN:?"
    )
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"} and limits["cpus"] == service["environment"]["OMP_NUM_THREADS"]
    command, *arguments = service["command"]
    options = {option for parameter in main.commands[command].params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options
    assert "http://127.0.0.1:8000/health" in service["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", ["ci", "docs", "release"])
def test_workflows_may_do_no_more_than_they_need(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    writers = {job for job, entry in workflow["jobs"].items() if "write" in str(entry.get("permissions"))}
    assert writers <= {"deploy", "publish"}


def lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
