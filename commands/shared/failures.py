"""One sentence for every exception of a command."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from jzi.commands.shared.common import UsageError
from jzi.errors import JziError, first_line

#: Environment variable that makes the command line print the traceback of every error.
DEBUG = "JZI_DEBUG"

#: Messages of torch and CUDA when memory is exhausted, which they raise as RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def usage_error(error: Exception) -> UsageError:
    """Convert an exception to the error that the command line prints, with exit code 2.

    The traceback is printed to standard error if `JZI_DEBUG` is 1.

    Args:
        error: any exception of jzi or of a library.
    """
    if os.environ.get(DEBUG) == "1":
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    return UsageError(_sentence(error))


@contextmanager
def options_explained(group: click.Context | None = None) -> Iterator[None]:
    """Print what click says about options and arguments as one sentence, too.

    Args:
        group: of the command that runs; None while the options of `jzi` itself are parsed.
    """
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself; click 8.1 has no such class
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        message = re.sub(r"\.? \(?Did (you mean .*?)\)?$", r" (did \1)", message)  # differs by version of click
        command = error.ctx.command_path if error.ctx else "jzi"
        if error.ctx is None and group is not None and group.invoked_subcommand:
            command = f"{group.command_path} {group.invoked_subcommand}"
        raise UsageError(f"{message[:1].lower()}{message[1:]:.300}: see `{command} -h`") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, JziError):
        return str(error)
    if _is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}): close other programs, or use a smaller batch (encoder.batch_size, "
            "train.batch_size), map or photo"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # an OSError from Python 3.13 on
        return f"{first_line(error)}: a link leads back to itself; give another path"
    return (
        f"unexpected error ({type(error).__name__}: {first_line(error)}): this is a defect of jzi; run it again "
        f"with {DEBUG}=1 and report its traceback as CONTRIBUTING.md describes"
    )


def _system(error: OSError) -> str:
    reason = error.strerror or os.strerror(error.errno or 0)
    name = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{name}the disk is full ({reason}): free some space and run the command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}{reason}: change the permissions, or give another path"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):  # also links to nowhere
        return f"{name}{reason}: move away what is there, or give another path"
    return f"{name}{reason}"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY)
