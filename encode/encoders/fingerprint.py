"""Fingerprints of encoders, over weights, config and preprocessing; from a loaded model or from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from jzi.encode.encoders.families import Family, find_family
from jzi.encode.encoders.hf_config import normalisation, read_encoder_config
from jzi.store.info import EncoderInfo

#: Config entries without effect on the embeddings: where weights came from and how they are stored.
_IGNORED_ENTRIES = (
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
    resampling: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    weights: Iterable[Tensor],
) -> str:
    """Compute the SHA-256 over config, preprocessing and weights.

    Args:
        config: config of the transformers model.
        family: family of its model type.
        image_size: side of the model's input, pixels.
        layout: how photos are cut into squares.
        resampling: how photos are resized.
        mean: mean of red, green and blue, 0..1.
        std: standard deviation of red, green and blue, 0..1.
        weights: in any order and precision; hashed as float32.

    Returns:
        The digest in hexadecimal.
    """
    # "bicubic" is what "antialias" is; it was hashed before there was a choice
    method = "bicubic" if resampling == "antialias" else resampling
    preprocessing = {"image_size": image_size, "layout": layout, "resampling": method}
    # The name of the pooling function is hashed: renaming it would invalidate every cache
    normalisation = {"mean": mean, "std": std, "embed": family.pool.__name__.strip("_")}
    digest = hashlib.sha256()
    entries = [config_entries(config), preprocessing, normalisation]
    digest.update(json.dumps(entries, sort_keys=True, default=str).encode())
    digest.update(weights_digest(weights))
    return digest.hexdigest()


def config_entries(config: Any) -> dict[str, Any]:
    """Return the entries of a model's config that its output depends on."""
    return {key: value for key, value in config.to_diff_dict().items() if key not in _IGNORED_ENTRIES}


def weights_digest(weights: Iterable[Tensor]) -> bytes:
    """Return the sorted digests of weights as float32.

    Their names are left out, because they change between versions of transformers.
    """
    arrays = (tensor.detach().float().cpu().contiguous().numpy() for tensor in weights)
    return b"".join(sorted(hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest() for array in arrays))


def is_stored_encoder(
    info: EncoderInfo, name: str | Path, image_size: int, layout: str, resampling: str = "antialias"
) -> bool:
    """Check whether a folder or the hub's local cache holds a given encoder, without building the model.

    Args:
        info: the encoder to compare with, such as a cache's.
        name: Hugging Face id or folder.
        image_size: side of the model's input, pixels.
        layout: how photos are cut into squares.
        resampling: how photos are resized.

    Returns:
        True if the fingerprints match. False if they differ or cannot be computed from the files: a checkpoint that
        is sharded or has extra weights must be loaded (`Encoder.load`) to compare it.
    """
    if (info.image_size, info.layout, info.resampling) != (image_size, layout, resampling):
        return False
    from_hub = not Path(name).is_dir()
    try:
        config = read_encoder_config(str(name), local_files_only=True)
        family = find_family(str(name), config.model_type)
        mean, std = normalisation(str(name), from_hub, family, local_files_only=True)
        file = Path(name) / "model.safetensors"
        if from_hub:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(str(name), file.name, local_files_only=True))
        with safe_open(file, "pt") as stored, torch.no_grad():
            weights = (stored.get_tensor(key) for key in stored.keys())  # noqa: SIM118 - not a dict
            fingerprint = encoder_fingerprint(config, family, image_size, layout, resampling, mean, std, weights)
    except Exception:  # whatever transformers raises for a damaged folder; loading it then reports the reason
        return False
    return fingerprint == info.fingerprint
