"""Convert checkpoints of the reference implementation to model folders."""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import create_folder, save_weights
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.families import find_family
from jzi.encode.encoders.hf_config import read_transformers_config
from jzi.encode.encoders.hf_model import check_size, quiet_transformers
from jzi.errors import EncoderError, ModelError, first_line
from jzi.store.disk.archive import check_archive
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_config import CONFIG
from jzi.store.tensors import check_entries, check_finite

_ENCODER, _DECODER = "encoder.backbone.", "decoder."

#: Added to parameter names by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def import_checkpoint(
    checkpoint: Path,
    folder: Path,
    pyramid: Pyramid,
    *,
    encoder: str = "facebook/dinov2-base",
    heads: int | None = None,
    image_size: int = 384,
    layout: str = "halves",
) -> None:
    """Convert a checkpoint to a model folder without a map, which is read from a cache made with its encoder.

    The model resizes photos as the reference does (`resampling = "reference"`).

    Args:
        checkpoint: file with `{"model_state_dict": {...}}`, parameters named as in transformers 4.47, optionally with
            `module.` and `_orig_mod.` prefixes. It is read with `weights_only=True`, so code in it is never run.
        folder: the model folder to create.
        pyramid: the area that the checkpoint was trained on.
        encoder: Hugging Face id or folder with the encoder's config.json; weights come from the checkpoint.
        heads: attention heads of the decoder; by default those of its rotary frequencies, or 8 as in the paper.
        image_size: side of the encoder's input, pixels.
        layout: how photos are cut into squares.

    Raises:
        ModelError: the checkpoint cannot be read or does not fit, or the folder holds a model already.
        ConfigError: the number of heads is out of range or does not divide the width.
        EncoderError: the encoder's config is not available.
    """
    if (folder / CONFIG).exists():
        raise ModelError(f"{folder} holds a model already: give another folder")
    weights = _read(checkpoint)
    config = _decoder_config(weights, heads)
    if config.actions != pyramid.actions:
        raise ModelError(
            f"{checkpoint} is of {config.actions} actions, but a tile of the area has {pyramid.actions} children: give "
            "the area that it was trained on"
        )
    with torch.device("meta"):
        shapes = ZoomDecoder(config).state_dict()
    encoder_config = _encoder_config(encoder)
    with tempfile.TemporaryDirectory() as temporary:
        # `save_pretrained` writes the names used in checkpoints, which may differ from those of the modules
        model_class = find_family(encoder, encoder_config.model_type).load_class()

        source = Path(temporary)
        size = 4 * sum(tensor.numel() for tensor in weights.values())
        check_size(encoder, model_class, encoder_config, size)
        model_class(encoder_config).save_pretrained(source)
        expected = {_ENCODER + name: tensor for name, tensor in load_file(source / "model.safetensors").items()}
        expected |= {_DECODER + name: tensor for name, tensor in shapes.items()}
        shapes_of = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        check_entries(
            checkpoint,
            shapes_of,
            {name: tuple(tensor.shape) for name, tensor in expected.items()},
            "its encoder's config or the reference's decoder",
        )
        check_finite(checkpoint, weights)
        encoder_weights = {name.removeprefix(_ENCODER): v for name, v in weights.items() if name.startswith(_ENCODER)}
        save_file(encoder_weights, source / "model.safetensors", metadata={"format": "pt"})
        loaded = Encoder.load(source, image_size=image_size, layout=layout, resampling="reference", device="cpu")
        loaded.save(source)
        loaded.name = encoder
        decoder = ZoomDecoder(config)
        decoder.load_state_dict({name: weights[_DECODER + name] for name in shapes})
        create_folder(folder, config, pyramid, loaded.info, source)
    save_weights(folder, decoder)


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """The model's tensors in float32, by the reference's names without prefixes."""
    if not checkpoint.is_file():
        raise ModelError(f"there is no checkpoint {checkpoint}")
    try:
        if zipfile.is_zipfile(checkpoint):
            check_archive(checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{checkpoint} is refused: it is damaged or holds more than tensors ({_unsupported(error)}), and jzi runs "
            "no code from a checkpoint; save it again as torch.save({'model_state_dict': model.state_dict()}, ...)"
        ) from error
    except Exception as error:  # zipfile, pickle and torch have errors of many kinds
        reason = first_line(error)
        reason = type(error).__name__ if "weights_only" in reason else reason  # torch's advice is to run the code
        raise ModelError(f"{checkpoint} cannot be read as a checkpoint: {reason}") from error
    state = content.get("model_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and _is_plain(value) for name, value in state.items()
    ):
        raise ModelError(f"{checkpoint} is not a checkpoint of the reference: it has no 'model_state_dict' of tensors")
    if sum(tensor.numel() for tensor in state.values()) > checkpoint.stat().st_size:  # views that repeat values
        raise ModelError(f"{checkpoint} has tensors of more values than it has bytes: save it again")
    return {_strip(name): tensor.float().contiguous() for name, tensor in state.items()}


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor of real numbers in memory."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return dense and not value.is_complex() and not value.is_quantized


def _unsupported(error: pickle.UnpicklingError) -> str:
    """The object that torch refused to load, from its message."""
    match = re.search(r"(?:GLOBAL|Unsupported \w+|Can only build) ?([\w.]+)", str(error))
    return match.group(0) if match else "torch refuses it"


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    for prefix in _PREFIXES:  # compiled submodules have the prefix inside the name
        name = name.replace(f".{prefix}", ".")
    return name


def _decoder_config(weights: dict[str, Tensor], heads: int | None) -> DecoderConfig:
    """Infer the architecture from the shapes; removes the rotary frequencies from the weights."""
    frequencies = weights.pop(_DECODER + "freqs", None)
    head = weights.get(_DECODER + "output_head.weight")
    if head is None or head.dim() != 2:
        raise ModelError("the checkpoint does not fit: decoder.output_head.weight is missing or has a wrong shape")
    actions, width = head.shape
    blocks = [int(match.group(1)) for name in weights if (match := re.match(r"decoder\.blocks\.(\d{1,6})\.", name))]
    stored_heads = None if frequencies is None else width // (2 * max(1, frequencies.numel()))
    if heads is not None and stored_heads is not None and heads != stored_heads:
        raise ModelError(f"the checkpoint does not fit: its decoder.freqs is of {stored_heads} heads, not of {heads}")
    layers = max(blocks, default=0) + 1
    return DecoderConfig(
        width=width, actions=actions, layers=layers, heads=heads if heads is not None else stored_heads or 8
    )


def _encoder_config(encoder: str) -> Any:
    quiet_transformers()
    try:
        return read_transformers_config(encoder)
    except (EncoderError, MemoryError):
        raise
    except Exception as error:  # transformers' own errors are of many kinds
        raise EncoderError(
            f"the config of the encoder {encoder!r} is not available: give --encoder a folder with its config.json, or "
            "a Hugging Face id that can be downloaded or is in the local hub cache"
        ) from error
