"""Reads the reference implementation's checkpoints (DESIGN 6) and writes them as model folders."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import create_folder, save_weights
from jzi.encode.encoder import Encoder, family_of, quiet_transformers
from jzi.errors import EncoderError, ModelError, first_line
from jzi.store.model_folder import CONFIG
from jzi.store.pyramid import Pyramid

_ENCODER, _DECODER = "encoder.backbone.", "decoder."

#: Left behind by DistributedDataParallel and torch.compile.
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
    """Write a model folder from a checkpoint. It has no map yet: that comes from a cache made with its encoder.

    Args:
        checkpoint: `{"model_state_dict": {...}}`, names as of transformers 4.47, perhaps under `module.` and
            `_orig_mod.`. It is read with `weights_only=True`: code in it is refused, never run.
        folder: the model folder to make.
        pyramid: the area that the checkpoint was trained on.
        encoder: whose config the encoder has: a Hugging Face id, or a folder with a config.json.
        heads: of the decoder; by default what its rotary frequencies say, or 8, the paper's.
        image_size: side of a square as the encoder saw it, pixels.
        layout: of the photos.

    Raises:
        ModelError: the checkpoint cannot be read, does not fit, or the folder holds a model already.
        EncoderError: the encoder's config cannot be had.
    """
    if (folder / CONFIG).exists():
        raise ModelError(f"{folder} holds a model already: give another folder")
    weights = _read(checkpoint)
    config = _decoder_config(weights, heads)
    decoder = ZoomDecoder(config)
    encoder_config = _encoder_config(encoder)
    with tempfile.TemporaryDirectory() as temporary:
        # What `save_pretrained` writes has the names that checkpoints have, whatever transformers calls them inside
        model_class = family_of(encoder, encoder_config.model_type).model_class
        import transformers

        source = Path(temporary)
        getattr(transformers, model_class)(encoder_config).save_pretrained(source)
        expected = {_ENCODER + name: tensor for name, tensor in load_file(source / "model.safetensors").items()}
        expected |= {_DECODER + name: tensor for name, tensor in decoder.state_dict().items()}
        _check(checkpoint, weights, expected)
        encoder_weights = {name.removeprefix(_ENCODER): v for name, v in weights.items() if name.startswith(_ENCODER)}
        save_file(encoder_weights, source / "model.safetensors", metadata={"format": "pt"})
        loaded = Encoder.load(source, image_size=image_size, layout=layout, device="cpu")
        loaded.save(source)
        loaded.name = encoder
        decoder.load_state_dict({name: weights[_DECODER + name] for name in decoder.state_dict()})
        create_folder(folder, config, pyramid, loaded.info, source)
    save_weights(folder, decoder)


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """The model's tensors in float32, by the reference's names without prefixes."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"there is no checkpoint {checkpoint}") from None
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{checkpoint} is refused: it is damaged or holds more than tensors ({_refused(error)}), and jzi runs no "
            f"code from a checkpoint; save it anew as torch.save({{'model_state_dict': model.state_dict()}}, ...)"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"{checkpoint} cannot be read as a checkpoint: {first_line(error)}") from error
    state = content.get("model_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{checkpoint} is no checkpoint of the reference: it has no 'model_state_dict' of tensors")
    return {_strip(name): tensor.float().contiguous() for name, tensor in state.items()}


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch would not load, in its own words, without its advice."""
    found = re.search(r"(?:GLOBAL|Unsupported \w+|Can only build) ?([\w.]+)", str(error))
    return found.group(0) if found else "torch refuses it"


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    for prefix in _PREFIXES:  # torch.compile of a part leaves its mark in the middle
        name = name.replace(f".{prefix}", ".")
    return name


def _decoder_config(weights: dict[str, Tensor], heads: int | None) -> DecoderConfig:
    """The architecture, read off the shapes; takes the frequencies out, which follow from it."""
    frequencies = weights.pop(_DECODER + "freqs", None)
    head = weights.get(_DECODER + "output_head.weight")
    if head is None or head.dim() != 2:
        raise ModelError("the checkpoint does not fit: decoder.output_head.weight is missing or misshapen")
    actions, width = head.shape
    blocks = [int(found.group(1)) for name in weights if (found := re.match(r"decoder\.blocks\.(\d+)\.", name))]
    said = None if frequencies is None else width // (2 * frequencies.numel())
    if heads is not None and said is not None and heads != said:
        raise ModelError(f"the checkpoint does not fit: its decoder.freqs is of {said} heads, not of {heads}")
    return DecoderConfig(width=width, actions=actions, layers=max(blocks, default=0) + 1, heads=heads or said or 8)


def _encoder_config(encoder: str) -> Any:
    import transformers

    quiet_transformers()
    try:
        return transformers.AutoConfig.from_pretrained(encoder)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(
            f"the config of the encoder {encoder!r} cannot be had: give --encoder a folder with its config.json, or a "
            "Hugging Face id that the network or the local hub cache has"
        ) from error


def _some(names: list[str], at_most: int = 20) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def _check(checkpoint: Path, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ModelError with the names of all entries that are missing, extra or misshapen."""
    faults = {
        "missing": [name for name in expected if name not in weights],
        "extra": [name for name in weights if name not in expected],
        "misshapen": [
            f"{name} {tuple(weights[name].shape)} not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    told = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
    if told:
        raise ModelError(f"{checkpoint} does not fit its encoder's config or the reference's decoder; {told}")
