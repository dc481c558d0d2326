"""Load vision models, ours and those of transformers, with their preprocessing; no code of a folder is ever run."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from jzi.encode.device import shapes_only
from jzi.encode.encoders.dinov2 import WEIGHTS, Dinov2, Dinov2Config, load_dinov2
from jzi.encode.encoders.families import Family, find_family
from jzi.encode.encoders.hf_config import find_file, normalisation, read_encoder_config, read_transformers_config
from jzi.errors import EncoderError, first_line

#: Suffixes of files with weights.
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class LoadedModel:
    """A vision model, with the preprocessing that was saved with its weights.

    Attributes:
        model: a `Dinov2`, or of transformers; in float32, on the CPU; its weights are finite.
        from_hub: whether its name is a Hugging Face id.
        mean: mean of red, green and blue, 0..1; the family's if none was saved.
        std: standard deviation of red, green and blue, 0..1; the family's if none was saved.
    """

    model: nn.Module
    from_hub: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_model(name: str | Path, *, global_embedding: bool = True) -> LoadedModel:
    """Load a vision model from a folder or from the Hugging Face hub; from the hub's local cache if possible.

    Args:
        name: Hugging Face id, or a folder written by `save_pretrained`.
        global_embedding: whether the global embedding is needed; else modules that only it needs are removed, and may
            be absent in the folder.

    Raises:
        EncoderError: the model cannot be found or loaded, or its model type is not supported.
    """
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise EncoderError(f"{name} is not an encoder: it has no config.json (as written by `save_pretrained`)")
    try:
        try:  # no network access if the local cache holds the model
            return _load(str(name), not is_folder, global_embedding, local_files_only=True)
        except OSError:
            if is_folder:
                raise
            tqdm.write(f"downloading the encoder {name} from the Hugging Face hub", file=sys.stderr)
            return _load(str(name), not is_folder, global_embedding)
    except (EncoderError, MemoryError):
        raise
    except Exception as error:  # transformers' own errors are of many kinds
        reason = first_line(error)
        if is_folder:
            raise EncoderError(f"the encoder in {name} cannot be loaded: {reason}") from error
        raise EncoderError(
            f"the encoder {str(name)!r} is not a local folder and cannot be downloaded from the Hugging Face hub "
            f"({reason}): check the name and the network, or give a folder written by `save_pretrained`"
        ) from error


def _load(name: str, from_hub: bool, global_embedding: bool, **options: Any) -> LoadedModel:
    config = read_encoder_config(name, **options)
    family = find_family(name, config.model_type)
    removed = () if global_embedding else family.global_only
    weights = find_file(name, WEIGHTS) if isinstance(config, Dinov2Config) else None
    model: nn.Module | None = load_dinov2(config, weights) if weights else None
    if model is None:
        model = _load_with_transformers(name, from_hub, family, removed, **options)
    for module in removed:
        setattr(model, module, nn.Identity())
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise EncoderError(f"the encoder {name} has weights that are not finite: download or copy it again")
    return LoadedModel(model, from_hub, *normalisation(name, from_hub, family, **options))


def _load_with_transformers(
    name: str, from_hub: bool, family: Family, removed: tuple[str, ...], **options: Any
) -> nn.Module:
    quiet_transformers()
    config = read_transformers_config(name, **options)
    model_class = family.load_class()
    if not from_hub and (files := [file for file in Path(name).iterdir() if file.suffix in _WEIGHTS]):
        size = sum(file.stat().st_size for file in files)
        check_size(name, model_class, getattr(config, "vision_config", config), size)
    model, report = model_class.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **family.options, **options
    )
    missing = sorted(
        key
        for key in report["missing_keys"]
        if not key.endswith("mask_token") and key.split(".")[0] not in removed  # the mask token is for training only
    )
    if missing:
        raise EncoderError(
            f"the encoder {name} lacks {len(missing)} weights ({missing[0]}, ...): download or copy it again"
        )
    loaded: nn.Module = model
    return loaded


def save_model(model: nn.Module, folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write a model as `load_model` reads it: by `save_pretrained`, and mean and std in preprocessor_config.json."""
    if not isinstance(model, Dinov2):
        quiet_transformers()
    model.save_pretrained(folder)  # type: ignore[operator]
    preprocessor = folder / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"image_mean": list(mean), "image_std": list(std)}, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(preprocessor.stat().st_mode)  # follows the umask; safetensors' files have mode 0600


def to_float16(embedding: Tensor, name: str) -> NDArray[np.float16]:
    """Convert embeddings or patch tokens to the cache's float16.

    Args:
        embedding: of any shape.
        name: of the encoder, for the error message.

    Raises:
        EncoderError: a value is not finite, or too large for float16.
    """
    stored = embedding.half().cpu().numpy()
    if not np.isfinite(stored).all():
        raise EncoderError(f"the encoder {name} computed embeddings that are not finite in float16: check its weights")
    return stored


def quiet_transformers() -> None:
    """Silence progress bars, warnings and retry messages of transformers and huggingface_hub; errors are raised."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def check_size(name: str, model_class: Any, config: Any, size: int) -> None:
    """Check that a config does not describe more weights than there are, before they are allocated.

    Args:
        name: of the encoder, for the error message.
        model_class: class of transformers.
        config: config of the class.
        size: bytes of the files with the weights, which take at least a byte each.

    Raises:
        EncoderError: it does.
    """
    with shapes_only():
        weights = sum(parameter.numel() for parameter in model_class(config).parameters())
    if weights > size:
        raise EncoderError(
            f"the config.json of {name} describes {weights} weights, more than there are: give its own config and "
            "weights, or copy them again"
        )
