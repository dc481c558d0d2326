"""The option --device of the benchmarks."""

from __future__ import annotations

import os
import re

import click
import torch


def choose_device(_: click.Context, __: click.Parameter, value: str | None) -> None:
    """Show only one device to CUDA, in this process and in those that it starts; jzi computes on the first it sees."""
    if value is None:
        return
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", value)
    if not match:
        raise click.BadParameter(f"{value!r} is none of cpu, cuda, cuda:0, cuda:1, ...")
    if value == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    number = int(match[1] or 0)
    if not torch.cuda.is_available() or number >= len(visible):
        raise click.BadParameter(f"torch finds no {value}: `nvidia-smi` lists the GPUs")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number]


device_option = click.option(
    "--device",
    callback=choose_device,
    expose_value=False,
    help="cpu, cuda, or cuda:1 for the second GPU.  [default: the first GPU, if there is one]",
)


def device_name() -> str:
    """The GPU, or the number of the CPU's threads, for the first line of the output."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
