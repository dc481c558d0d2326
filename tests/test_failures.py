"""Every exception of a command is one sentence with exit code 2, and a traceback only where it is asked for."""

from __future__ import annotations

import errno

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from jzi.cli import Commands
from jzi.cli import main as jzi
from jzi.errors import ConfigError, first_line


def run(error: BaseException) -> Result:
    """Run a command that raises."""

    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(main, ["fail"])


def too_large() -> Exception:
    with pytest.raises(MemoryError) as error:
        np.empty(2**58, np.uint8)
    return error.value


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ConfigError("a setting is wrong: change it"), ["a setting is wrong"]),
        (ValueError("null byte\nand more"), ["unexpected error (ValueError: null byte)", "JZI_DEBUG=1"]),
        (KeyError(), ["unexpected error (KeyError: KeyError)", "CONTRIBUTING.md"]),
        (RuntimeError("x" * 5000), ["unexpected error (RuntimeError: xxx", "xxx...)"]),
        (AssertionError("never"), ["unexpected error (AssertionError: never)"]),
        (too_large(), ["out of memory", "encoder.batch_size"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["out of memory"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), ["out of memory"]),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ["out of memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "a.tif"), ["a.tif: the disk is full", "free some space"]),
        (PermissionError(errno.EACCES, "Permission denied", "a.tif"), ["a.tif: Permission denied", "permissions"]),
        (OSError(errno.EIO, "Input/output error", "a.tif"), ["a.tif: Input/output error"]),
        (FileExistsError(errno.EEXIST, "File exists", "model"), ["model: File exists: move away", "another path"]),
        (RuntimeError("Symlink loop from '/a/b'"), ["Symlink loop from '/a/b': a link leads back", "another path"]),
        (OSError("no number"), ["unexpected error (OSError: no number)"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_is_one_sentence(error: Exception, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JZI_DEBUG", raising=False)
    result = run(error)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("jzi: ") and all(part in line for part in parts) and len(line) < 600
    monkeypatch.setenv("JZI_DEBUG", "1")
    result = run(error)
    assert result.exit_code == 2 and result.stderr.startswith("Traceback") and result.stderr.endswith(f"{line}\n")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (click.exceptions.Exit(3), 3)])
def test_interrupts_and_exits_are_not_errors(error: BaseException, code: int) -> None:
    result = run(error)
    assert result.exit_code == code and "error" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--foo", "no such option '--foo': see `jzi -h`"),
        ("locate", "missing argument 'PHOTOS...': see `jzi locate -h`"),
        ("locate a.jpg --top 0", "invalid value for '--top': 0 is not in the range 1<=x<=1000: see `jzi locate -h`"),
        ("locate a.jpg --tob 1", "no such option '--tob' (did you mean '--top'?): see `jzi locate -h`"),
        ("evaluate --beams", "option '--beams' requires an argument: see `jzi evaluate -h`"),
        ("cache verify --foo", "no such option '--foo': see `jzi cache verify -h`"),
    ],
)
def test_a_wrong_option_is_one_sentence_with_the_command_that_explains_it(arguments: str, sentence: str) -> None:
    result = CliRunner().invoke(jzi, arguments.split(), prog_name="jzi")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"jzi: {sentence}\n")


def test_without_a_command_the_help_is_shown() -> None:
    assert "Usage: jzi" in CliRunner().invoke(jzi, [], prog_name="jzi").output


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Error in void faiss::write_HNSW(const HNSW*, IOWriter*) at /project/faiss/impl/index_write.cpp:360: "
            "Error: 'ret == (size)' failed: write error in /data/.hnsw.faiss.partial/1.a/file: 977 != 3000 (No space "
            "left on device)",
            "No space left on device",
        ),
        (
            "Error in void faiss::read_HNSW(HNSW&, IOReader*) at /project/faiss/impl/index_read.cpp:1294: Error: "
            "'ret == (size)' failed: read error in hnsw.faiss: 1203 != 3000 (Success)",
            "it is shorter than it says",
        ),
        (
            "Error in std::unique_ptr<faiss::Index> faiss::read_index_up(IOReader*, int) at /project/faiss/impl/"
            'index_read.cpp:3251: Index type 0x746f6f72 ("root") not recognized',
            'Index type 0x746f6f72 ("root") not recognized',
        ),
    ],
)
def test_errors_of_faiss_are_their_reason_without_its_source(message: str, reason: str) -> None:
    assert first_line(RuntimeError(message)) == reason
