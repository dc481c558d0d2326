"""The fingerprint of an encoder: of its weights, config and preprocessing, from a model or from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jzi.encode.families import FAMILIES, Family
from jzi.store.info import EncoderInfo

#: Entries of a config that say where weights came from or how they are stored, not what is computed.
_NOT_COMPUTING = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_attn_implementation",
)


def encoder_fingerprint(
    config: Any,
    family: Family,
    image_size: int,
    layout: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    weights: Iterable[Tensor],
) -> str:
    """SHA-256 over config, preprocessing and weights, in hexadecimal.

    Args:
        config: of the transformers model.
        family: of its type.
        image_size: side of a square as the model sees it, pixels.
        layout: how a photo becomes squares.
        mean: of red, green and blue, 0..1.
        std: likewise.
        weights: in any order and precision; they count as float32.
    """
    computing = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_COMPUTING}
    preprocessing = {"image_size": image_size, "layout": layout, "resampling": "bicubic"}
    normalisation = {"mean": mean, "std": std, "embed": family.pool.__name__.strip("_")}
    digest = hashlib.sha256()
    digest.update(json.dumps([computing, preprocessing, normalisation], sort_keys=True, default=str).encode())
    # By their values, not their names, which change from one version of transformers to the next
    arrays = (tensor.detach().float().cpu().contiguous().numpy() for tensor in weights)
    for each in sorted(hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest() for array in arrays):
        digest.update(each)
    return digest.hexdigest()


def is_stored_encoder(info: EncoderInfo, name: str | Path, image_size: int, layout: str) -> bool:
    """Whether a folder, or the local hub cache, holds the encoder of an `EncoderInfo`; no model is built.

    False where its files do not prove it: a checkpoint that is sharded or holds more than the model needs has to be
    loaded to find out (`Encoder.load`).

    Args:
        info: such as a cache records.
        name: a Hugging Face id or a folder.
        image_size: side of a square as the model sees it, pixels.
        layout: how a photo becomes squares.
    """
    if (info.image_size, info.layout) != (image_size, layout):
        return False
    import transformers

    from_hub = not Path(name).is_dir()
    try:
        config = transformers.AutoConfig.from_pretrained(str(name), local_files_only=True)
        family = FAMILIES[config.model_type]
        mean, std = normalisation(str(name), from_hub, family, local_files_only=True)
        file = Path(name) / "model.safetensors"
        if from_hub:
            file = Path(hf_hub_download(str(name), file.name, local_files_only=True))
        with safe_open(file, "pt") as stored, torch.no_grad():
            weights = (stored.get_tensor(key) for key in stored.keys())  # noqa: SIM118 - not a dict
            fingerprint = encoder_fingerprint(config, family, image_size, layout, mean, std, weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
        return False
    return fingerprint == info.fingerprint


def normalisation(
    name: str, from_hub: bool, family: Family, **options: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue: the family's, or those that lie beside the weights.

    (transformers' own reader takes 1.5 s to import.)

    Args:
        name: a Hugging Face id or a folder.
        from_hub: which of the two.
        family: of the model.
        options: for `hf_hub_download`.
    """
    file = Path(name) / "preprocessor_config.json"
    if from_hub:
        try:
            file = Path(hf_hub_download(name, file.name, **options))
        except EntryNotFoundError:  # not on the hub, or, without network, not fetched before
            return family.mean, family.std
    trained = json.loads(file.read_text()) if file.is_file() else {}
    mean, std = (tuple(trained[key]) if key in trained else None for key in ("image_mean", "image_std"))
    return mean or family.mean, std or family.std
