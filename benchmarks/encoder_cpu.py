"""Measure what runs an encoder on a CPU: DINOv2 with random weights, against our own in plain torch.

    OMP_NUM_THREADS=1 python -m benchmarks.encoder_cpu --size small --batch 2

Images per second of CPU time on one thread, so that other work on the machine matters little; medians of ratios over
alternating rounds, and the least cosine of an embedding with ours. ONNX Runtime and OpenVINO are measured where they
are installed, with `onnx` and `onnxscript`.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor, nn

from jzi.encode.encoders.dinov2 import Dinov2, Dinov2Config

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12)}  # width, layers, heads


def exported(model: nn.Module, pixels: Tensor, folder: Path) -> dict[str, Callable[[], Tensor]]:
    """The runtimes that are installed, of the model as ONNX."""
    runs: dict[str, Callable[[], Tensor]] = {}
    path, array = folder / "encoder.onnx", pixels.numpy()
    names = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    if names:
        torch.onnx.export(model, (pixels,), path, dynamo=True, input_names=["x"], external_data=False)
    if "onnxruntime" in names:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs["ONNX Runtime"] = lambda: torch.from_numpy(session.run(None, {"x": array})[0])
    if "openvino" in names:
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
        runs["OpenVINO"] = lambda: torch.from_numpy(compiled(array)[0])
    return runs


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--batch", default=2, show_default=True)
@click.option("--rounds", default=4, show_default=True)
@torch.inference_mode()
def main(size: str, batch: int, rounds: int) -> None:
    """Measure and print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    width, layers, heads = SIZES[size]
    config = Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518)
    model, pixels = Dinov2(config).eval().requires_grad_(False), torch.randn(batch, 3, 224, 224)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of what is deprecated in torch's own quantisation
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        runs = {"ours": lambda: model(pixels), "int8, dynamic": lambda: quantised(pixels)}
        runs |= exported(model, pixels, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        tokens: dict[str, Tensor] = {}
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.process_time()
                tokens[name] = run()
                if number:
                    seconds[name].append(time.process_time() - start)
    click.echo(f"DINOv2-{size}, 224 px, batch {batch}, torch {torch.__version__}")
    for name, times in seconds.items():
        ratio = median(ours / own for ours, own in zip(seconds["ours"], times, strict=True))
        cosine = torch.cosine_similarity(tokens[name][:, 0], tokens["ours"][:, 0]).min()
        click.echo(f"{name:<16}{batch / median(times):>8.2f} images/s{ratio:>8.2f} of ours   cosine {cosine:.4f}")


if __name__ == "__main__":
    main()
