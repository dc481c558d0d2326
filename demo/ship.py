"""Install a fine-tuned model as the demo's: `python -m jzi.demo.ship FINETUNED`.

Weights are stored as float16, half the size; they are converted back to float32 on load.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from jzi.decode.model import ZoomModel, create_folder
from jzi.demo.tour import FINETUNED, IMAGE_SIZE
from jzi.encode.encoder import Encoder


def ship(folder: Path, output: Path) -> None:
    """Write the parts of a fine-tuned model that the demo needs.

    Args:
        folder: model folder written by `jzi finetune`.
        output: the folder to replace.
    """
    model = ZoomModel.load(folder)
    shutil.rmtree(output, ignore_errors=True)
    (output / "encoder").mkdir(parents=True)
    for name in ("encoder/model.safetensors", "decoder.safetensors"):
        half = {key: value.to(torch.float16) for key, value in load_file(folder / name).items()}
        save_file(half, output / name, metadata={"format": "pt"})
        (output / name).chmod(0o644)
    config = json.loads((folder / "encoder" / "config.json").read_text())
    text = json.dumps({**config, "dtype": "float16"}, indent=2)
    (output / "encoder" / "config.json").write_text(text + "\n")
    shutil.copy(folder / "encoder" / "preprocessor_config.json", output / "encoder")
    info = Encoder.load(output / "encoder", image_size=IMAGE_SIZE, device="cpu").info  # float16 changes the fingerprint
    create_folder(output, model.decoder.config, model.pyramid, replace(info, name="finetuned/encoder"), None)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), FINETUNED)
