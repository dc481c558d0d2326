"""Execute the notebooks of `docs/notebooks` in copies of the demo's folder, and render them as pages.

python -m jzi.docs.generate.notebooks demo-out build/notebooks
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

SOURCE = Path(__file__).parents[1] / "notebooks"

#: Seconds that a cell may take, many times what the slowest needs: a guard against one that hangs.
CELL_TIMEOUT_S = 900

_NOT_EXECUTED = "!!! note\n    Built without outputs: `make docs` executes the notebooks.\n\n"


def execute(notebook: Path, demo: Path, output: Path) -> None:
    """Execute a notebook in a copy of the demo's folder, and write it with its outputs.

    Args:
        notebook: path of the notebook.
        demo: folder that `jzi demo` made; it is not changed.
        output: path of the executed notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory(prefix="jzi-notebook-") as folder:
        work = Path(shutil.copytree(demo, Path(folder) / "demo"))
        NotebookClient(
            content, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(work)}}
        ).execute()
    output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, output)


def notebook_files(notebook: Path, executed: Path) -> dict[str, str | bytes]:
    """Render a notebook: its page and the pictures in it, by their paths in the documentation.

    Args:
        notebook: path of the notebook.
        executed: folder of the executed notebooks; without one of this name, the page has no outputs.
    """
    done = executed / notebook.name
    content: NotebookNode = nbformat.read(done if done.exists() else notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = _shown(cell.outputs)
    prefix = f"{notebook.stem}-"
    text, resources = MarkdownExporter().from_notebook_node(
        content, resources={"unique_key": notebook.stem, "output_files_dir": "", "metadata": {"name": notebook.stem}}
    )
    files: dict[str, str | bytes] = {}
    for name, data in resources.get("outputs", {}).items():
        picture = prefix + Path(name).name.removeprefix(f"{notebook.stem}_")
        text = text.replace(f"({name})", f"({picture})")
        files[f"notebooks/{picture}"] = data
    title, _, body = text.partition("\n")
    note = "" if done.exists() else _NOT_EXECUTED
    files[f"notebooks/{notebook.stem}.md"] = f"{title}\n\n{note}{body}"
    return files


def _shown(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without progress and messages, what was printed in one piece."""
    shown: list[NotebookNode] = []
    for output in outputs:
        if output.get("name") == "stdout" and shown and shown[-1].get("name") == "stdout":
            shown[-1].text += output.text
        elif output.get("name") != "stderr":
            shown.append(output)
    return shown


def main(demo: Path, output: Path) -> None:
    """Execute all notebooks; the first cell that fails ends it with its traceback."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the command jzi
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # notebooks run at the same time
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else debugpy warns about frozen modules
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    notebooks = sorted(SOURCE.glob("*.ipynb"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(execute, notebook, demo, output / notebook.name) for notebook in notebooks]
        for run in as_completed(runs):
            run.result()
    print(f"{len(notebooks)} notebooks executed in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
