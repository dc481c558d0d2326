"""Families of vision-language models, and how each takes a prompt with images.

For most, their own processor converts a whole prompt. LLaVA and Qwen take token ids in which the placeholder of
each image is repeated as often as it has tokens, and the images beside them, so that an image is processed once for
all prompts; `Family.features` then also runs the vision tower once, and the language model reads the common beginning
of prompts once. Tests compare this with the plain forward pass of each family that does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from jzi.errors import RerankError, first_line
from jzi.rerank.question import Composition

#: Token ids, masks and pixels of a prompt, as keyword arguments of the model.
Inputs = dict[str, Tensor]

#: Largest config.json, bytes.
_MAX_CONFIG = 2**20

#: Entries of a config that make transformers load other code or other weights.
_REFUSED = ("auto_map", "quantization_config", "kernel_config", "compression_config")
_ATTENTION = ("sdpa", "eager")

#: Largest values of entries that set the length of lists; of all others the number of weights is checked.
_MOST_LAYERS, _LARGEST = 512, 2**24
_LAYERS = ("num_hidden_layers", "depth", "num_layers")


@dataclass(frozen=True)
class Family:
    """How a family of models takes images.

    Attributes:
        model_class: class of transformers.
        composition: what the models were trained on: several images, or one.
        square: whether images are padded to squares, because the processor cuts or stretches them.
        placeholders: (image processor or processor, picture) -> (number of tokens, keyword arguments of the model);
            None if only the processor can make a prompt.
        features: (model, keyword arguments of an image) -> (token, feature), what stands for the image in the language
            model; None if it takes more than that, or nobody compared it.
        positions: (model, inputs) -> positions of tokens (axis, prompt, token) for the language model; None if they
            are 0, 1, 2 ...
        token_types: whether the model takes `mm_token_type_ids`, which mark the tokens of images.
        needs: modules that the processor imports and that jzi does not install.
        options: keyword arguments of the processor.
    """

    model_class: str
    composition: Composition = "images"
    square: bool = False
    placeholders: Callable[[Any, Image.Image], tuple[int, Inputs]] | None = None
    features: Callable[[Any, Inputs], Tensor] | None = None
    positions: Callable[[Any, Inputs], Tensor] | None = None
    token_types: bool = False
    needs: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def _llava_placeholders(processor: Any, image: Image.Image) -> tuple[int, Inputs]:
    encoded = processor(text=processor.image_token, images=[image], return_tensors="pt")
    count = int((encoded["input_ids"] == processor.image_token_id).sum())
    return count, {"pixel_values": encoded["pixel_values"]}


def _llava_features(model: Any, image: Inputs) -> Tensor:
    return torch.cat(tuple(model.get_image_features(**image, return_dict=True).pooler_output))


def qwen_placeholders(image_processor: Any, image: Image.Image) -> tuple[int, Inputs]:
    encoded = image_processor(images=[image], return_tensors="pt")
    count = int(encoded["image_grid_thw"].prod()) // image_processor.merge_size**2
    return count, {"pixel_values": encoded["pixel_values"], "image_grid_thw": encoded["image_grid_thw"]}


def _qwen_positions(model: Any, inputs: Inputs) -> Tensor:
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        attention_mask=inputs["attention_mask"],
    )
    return positions


_ONE_TILE = {"do_image_splitting": False}
_QWEN: dict[str, Any] = {"placeholders": qwen_placeholders, "token_types": True}
_QWEN_SHARED = {**_QWEN, "features": _llava_features, "positions": _qwen_positions}

#: By the config's `model_type`. LLaVA-1.5 and LLaVA-NeXT were trained on single images.
FAMILIES = {
    "gemma3": Family("Gemma3ForConditionalGeneration", square=True),
    "idefics3": Family("Idefics3ForConditionalGeneration", square=True, options=_ONE_TILE),
    "internvl": Family("InternVLForConditionalGeneration", square=True, needs=("torchvision",)),
    "llava": Family(
        "LlavaForConditionalGeneration",
        "canvas",
        square=True,
        placeholders=_llava_placeholders,
        features=_llava_features,
    ),
    "llava_next": Family("LlavaNextForConditionalGeneration", "canvas"),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", needs=("torchvision",)),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", **_QWEN),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", **_QWEN_SHARED),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", **_QWEN),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration", square=True, needs=("torchvision", "num2words"), options=_ONE_TILE
    ),
}


def family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Read and check config.json of a model, before any other library reads it.

    Args:
        folder: of the model.

    Returns:
        The family, and the entries.

    Raises:
        RerankError: there is no config.json, the model type is not supported, or an entry is out of range or would load
            other code.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise RerankError(f"{path} has more than {_MAX_CONFIG} bytes: copy or download the model again")
        entries = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RerankError(f"{folder} is not a model: it has no config.json (as written by `save_pretrained`)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RerankError(f"{path} cannot be read ({first_line(error)}): copy or download the model again") from error
    entries = entries if isinstance(entries, dict) else {}
    model_type = entries.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        code = " with code of its own, which jzi does not run" if "auto_map" in entries else ""
        raise RerankError(f"{folder} is a {model_type!r:.60} model{code}: use one of {', '.join(FAMILIES)}")
    _check_entries(folder, entries)
    family = FAMILIES[model_type]
    if missing := [name for name in family.needs if find_spec(name) is None]:
        raise RerankError(
            f"the processor of {folder}, a {model_type} model, needs {' and '.join(missing)}: install what fits your "
            "torch, or use a model of another family"
        )
    return family, entries


def _check_entries(folder: Path, entries: dict[str, Any]) -> None:
    """Check the entries, and those of parts such as `vision_config`."""
    for key, value in entries.items():
        if isinstance(value, dict):
            _check_entries(folder, value)
        limit = _MOST_LAYERS if key in _LAYERS else _LARGEST
        if type(value) is int and "theta" not in key and not -limit <= value <= limit:
            raise RerankError(f"the config.json of {folder} has {key} = {value!r:.60}: at most {limit} is supported")
        attention = "attn_implementation" in key and isinstance(value, str | dict) and value not in _ATTENTION
        if attention or (key in _REFUSED and value is not None):
            raise RerankError(
                f"the config.json of {folder} has {key} = {value!r:.60}, which would load other code: remove that entry"
            )
