"""Install trained models as the demo's: `python -m jzi.demo.ship FINETUNED MODEL`, `python -m jzi.demo.ship REFINER`.

MODEL was trained from the cache with the fine-tuned encoder; its heads of the experts cells and levels are shipped,
without their codes, as the start of the demo's. REFINER was trained by `jzi train-refiner`. Weights are stored as
float16, half the size; they are converted back to float32 on load.
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
from jzi.demo.tour import FINETUNED, IMAGE_SIZE, REFINER
from jzi.encode.encoders.encoder import Encoder
from jzi.refine.networks.files import load_refiner, save_refiner
from jzi.store.model_folder import EXPERT_FILES


def ship(folder: Path, trained: Path, output: Path) -> None:
    """Write the parts of a fine-tuned model that the demo needs.

    Args:
        folder: model folder written by `jzi finetune`.
        trained: model folder written by `jzi train-decoder`, with the experts cells and levels.
        output: the folder to replace.
    """
    model = ZoomModel.load(folder)
    shutil.rmtree(output, ignore_errors=True)
    (output / "encoder").mkdir(parents=True)
    for source, name in (
        (folder, "encoder/model.safetensors"),
        (folder, "decoder.safetensors"),
        (trained, EXPERT_FILES["cells"]),
        (trained, EXPERT_FILES["levels"]),
    ):
        heads_only = (item for item in load_file(source / name).items() if not item[0].startswith(("codes", "imagery")))
        half = {key: value.to(torch.float16) for key, value in heads_only}
        save_file(half, output / name, metadata={"format": "pt"})
        (output / name).chmod(0o644)
    config = json.loads((folder / "encoder" / "config.json").read_text())
    text = json.dumps({**config, "dtype": "float16"}, indent=2)
    (output / "encoder" / "config.json").write_text(text + "\n")
    shutil.copy(folder / "encoder" / "preprocessor_config.json", output / "encoder")
    info = Encoder.load(output / "encoder", image_size=IMAGE_SIZE, device="cpu").info  # float16 changes the fingerprint
    create_folder(output, model.decoder.config, model.pyramid, replace(info, name="finetuned/encoder"), None)


def ship_refiner(folder: Path, output: Path) -> None:
    """Write a refiner with weights in float16.

    Args:
        folder: written by `jzi train-refiner`, with the weights of its fusion.
        output: the folder to replace.
    """
    refiner, info = load_refiner(folder)
    shutil.rmtree(output, ignore_errors=True)
    save_refiner(output, refiner.half(), info)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        ship_refiner(Path(sys.argv[1]), REFINER)
    else:
        ship(Path(sys.argv[1]), Path(sys.argv[2]), FINETUNED)
