"""Read and check the config.json and preprocessor_config.json of an encoder; no code of a model folder is ever run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jzi.encode.encoders.dinov2 import Dinov2Config
from jzi.encode.encoders.families import Family, find_family
from jzi.errors import EncoderError
from jzi.store.info import MAX_WIDTH

#: Largest value of each number of a config, more than those of the largest published vision transformers.
_LIMITS = {
    "hidden_size": MAX_WIDTH,
    "num_hidden_layers": 128,
    "num_attention_heads": 128,
    "patch_size": 256,
    "image_size": 16_384,
    "intermediate_size": 32_768,
}

#: Largest number of stages of a convolutional network, each of which halves the side of its feature map.
_MAX_STAGES = 8

#: Largest absolute value of every other number; some set the length of lists that transformers creates.
_LARGEST = 2**20

#: Attention that transformers contains, and entries that make it load other code.
_ATTENTION = ("sdpa", "eager")
_REFUSED = ("quantization_config", "kernel_config", "compression_config")


def read_encoder_config(name: str, **options: Any) -> Any:
    """Read the config of an encoder, without running code that the folder or the repository contains.

    Args:
        name: Hugging Face id or folder.
        options: keyword arguments of `from_pretrained`, such as `local_files_only`.

    Returns:
        A `Dinov2Config` if `jzi.encode.encoders.dinov2` supports it and it is on this machine; else transformers'
        config.

    Raises:
        EncoderError: the model type is not supported, or a number is out of range.
        OSError: the config cannot be found.
        Exception: whatever transformers raises for a config that is damaged.
    """
    return _read_dinov2(name) or read_transformers_config(name, **options)


def find_file(name: str, file: str) -> Path | None:
    """Return the path of an encoder's file in its folder or in the hub's local cache; None if there is none.

    Args:
        name: Hugging Face id or folder.
        file: name of the file.
    """
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # not a name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def _read_dinov2(name: str) -> Dinov2Config | None:
    file = find_file(name, "config.json")
    try:
        entries = json.loads(file.read_text()) if file else None
    except (OSError, ValueError, RecursionError):
        return None  # transformers reports what is wrong
    if not isinstance(entries, dict) or entries.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        return None
    _check_entries(name, entries)
    config = Dinov2Config.from_entries(entries)
    if config is not None:
        _check_numbers(name, config)
    return config


def read_transformers_config(name: str, **options: Any) -> Any:
    """Read the config of an encoder as transformers' class, without running code of the folder or the repository.

    Args:
        name: Hugging Face id or folder.
        options: keyword arguments of `from_pretrained`, such as `local_files_only`.

    Returns:
        The config of transformers.

    Raises:
        EncoderError: the model type is not supported, or a number is out of range.
        OSError: the config cannot be found.
        Exception: whatever transformers raises for a config that is damaged.
    """
    import transformers

    entries, _ = transformers.PreTrainedConfig.get_config_dict(name, **options)
    model_type = entries.get("model_type")
    code = " with code of its own, which jzi does not run" if "auto_map" in entries else ""
    family = find_family(name, model_type, code)
    _check_entries(name, entries)
    if family.config_class is not None:
        return family.config_class.from_pretrained(name, **options)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    _check_numbers(name, getattr(config, "vision_config", config))
    return config


def normalisation(
    name: str, from_hub: bool, family: Family, **options: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read mean and standard deviation from preprocessor_config.json; the family's if there is none.

    Args:
        name: Hugging Face id or folder.
        from_hub: whether the name is a Hugging Face id.
        family: family of the model.
        options: keyword arguments of `hf_hub_download`.

    Returns:
        Mean and standard deviation of red, green and blue, 0..1.

    Raises:
        EncoderError: they are not three finite numbers each, or a standard deviation is not more than 0.
    """
    # Not transformers' image processors, which take 1.5 s to import
    file = Path(name) / "preprocessor_config.json"
    if from_hub:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            file = Path(hf_hub_download(name, file.name, **options))
        except EntryNotFoundError:  # not on the hub, or offline and not in the local cache
            return family.mean, family.std
    entries = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(entries, dict):
        raise EncoderError(f"{file} is not a JSON object: copy or download the encoder again")
    mean, std = entries.get("image_mean") or family.mean, entries.get("image_std") or family.std
    if not _three_numbers(mean) or not _three_numbers(std) or min(std) <= 0:
        raise EncoderError(
            f"{file} has image_mean {mean!r:.60} and image_std {std!r:.60}: they must be three finite numbers each, "
            "and image_std more than 0"
        )
    return tuple(mean), tuple(std)


def _check_stages(name: str, config: Any) -> None:
    """Check the lists of a convolutional network: channels and blocks of each stage."""
    for key, limit in (("hidden_sizes", _LIMITS["hidden_size"]), ("depths", _LIMITS["num_hidden_layers"])):
        values = getattr(config, key, None)
        if not isinstance(values, list | tuple) or not (
            1 <= len(values) <= _MAX_STAGES and all(type(value) is int and 1 <= value <= limit for value in values)
        ):
            raise EncoderError(
                f"the config.json of {name} has {key} = {values!r:.60}: it must be a list of 1 to {_MAX_STAGES} whole "
                f"numbers from 1 to {limit}"
            )
    if not len(config.hidden_sizes) == len(config.depths) == config.num_stages:
        raise EncoderError(
            f"the config.json of {name} has {len(config.hidden_sizes)} hidden_sizes and {len(config.depths)} depths "
            f"for num_stages = {config.num_stages!r:.60}: they must be as many"
        )


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and abs(value) < 1e6 and math.isfinite(value) for value in values)
    )


def _check_entries(name: str, entries: dict[str, Any]) -> None:
    """Check the entries before transformers reads them, those of parts such as `vision_config` too."""
    for key, value in entries.items():
        if isinstance(value, dict):
            _check_entries(name, value)
        limit = _LIMITS.get(key, _LARGEST)
        if isinstance(value, int | float) and not -limit <= value <= limit:
            raise EncoderError(
                f"the config.json of {name} has {key} = {value!r:.60}: it must be a number of at most {limit}"
            )
        attention = "attn_implementation" in key and isinstance(value, str | dict) and value not in _ATTENTION
        if attention or (key in _REFUSED and value is not None):
            raise EncoderError(
                f"the config.json of {name} has {key} = {value!r:.60}, which would load other code: remove that entry"
            )


def _check_numbers(name: str, config: Any) -> None:
    stages = config.model_type == "convnext"
    for key, limit in _LIMITS.items():
        if stages and key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            continue
        value = getattr(config, key, None)
        if value is None and key in ("image_size", "intermediate_size"):  # families without learned positions, etc.
            continue
        if type(value) is not int or not 1 <= value <= limit:
            raise EncoderError(
                f"the config.json of {name} has {key} = {value!r:.60}: it must be a whole number from 1 to {limit}"
            )
    ratio = getattr(config, "mlp_ratio", 1)
    if type(ratio) not in (int, float) or not 0 < ratio <= 64:
        raise EncoderError(f"the config.json of {name} has mlp_ratio = {ratio!r:.60}: it must lie between 0 and 64")
    if stages:
        _check_stages(name, config)
    elif config.hidden_size % config.num_attention_heads:
        raise EncoderError(
            f"the config.json of {name} has num_attention_heads = {config.num_attention_heads}: that must divide "
            f"hidden_size, {config.hidden_size}"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise EncoderError(f"the config.json of {name} has num_channels = {config.num_channels!r:.60}: it must be 3")
