"""Families of vision-language models, and how each takes a prompt with images.

Most take what their own processor makes of a whole prompt. LLaVA and Qwen take token ids in which the placeholder of
each image is repeated as often as it has tokens, and the images beside them, so that an image is processed once for
all prompts; `Family.features` then also runs the vision tower once, and the language model reads the common beginning
of prompts once. Tests compare this with the plain forward pass of each family that does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from jzi.errors import RerankError, first_line
from jzi.rerank.compose import squared
from jzi.rerank.question import Composition, Picture

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
        token_types: whether the model is told which tokens stand for images, as `mm_token_type_ids`.
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


def _qwen_placeholders(image_processor: Any, image: Image.Image) -> tuple[int, Inputs]:
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
_QWEN: dict[str, Any] = {"placeholders": _qwen_placeholders, "token_types": True}
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
    model_type = entries.get("model_type") if isinstance(entries, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        code = " with code of its own, which jzi does not run" if "auto_map" in (entries or ()) else ""
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


class Prompter:
    """Makes the inputs of a model from texts and pictures.

    Args:
        name: of the model, for error messages.
        family: of the model.
        folder: of its tokenizer and its processor.
        image_token_id: the token that stands for an image, or for each of its tokens.

    Attributes:
        tokenizer: of the model.
        image_token_id: the token that stands for an image, or for each of its tokens.

    Raises:
        RerankError: there is no chat template, or the tokenizer or processor cannot be loaded.
    """

    def __init__(self, name: str, family: Family, folder: Path, image_token_id: int) -> None:
        import transformers

        self._name, self._family, self.image_token_id = name, family, image_token_id
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            if family.placeholders is _qwen_placeholders:  # their processors need torchvision, for videos
                self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
                self._processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, **options)
                self._template: Any = self.tokenizer
            else:
                self._processor = self._template = transformers.AutoProcessor.from_pretrained(folder, **options)
                self.tokenizer = self._processor.tokenizer
        except Exception as error:  # of many kinds
            raise RerankError(
                f"the tokenizer or the image processor of {name} cannot be loaded ({first_line(error)}): copy or "
                "download the model again"
            ) from error
        if not getattr(self._template, "chat_template", None):
            raise RerankError(f"{name} has no chat template, so it cannot be asked: use a model that was tuned to chat")
        self._pictures: dict[str, tuple[int, Inputs]] = {}

    def forget(self) -> None:
        """Drop the processed pictures."""
        self._pictures.clear()

    def picture(self, picture: Picture) -> tuple[int, Inputs]:
        """Process a picture, once.

        Returns:
            Its number of tokens, and the keyword arguments that the model takes for it.
        """
        if picture.digest not in self._pictures:
            assert self._family.placeholders is not None
            image = Image.fromarray((squared(picture) if self._family.square else picture).pixels)
            self._pictures[picture.digest] = self._family.placeholders(self._processor, image)
        return self._pictures[picture.digest]

    def inputs(self, parts: Sequence[str | Picture]) -> Inputs:
        """Make the inputs of a prompt.

        Args:
            parts: texts and pictures, in reading order.

        Returns:
            Keyword arguments of the model, with a first axis of length 1 for token ids and masks.

        Raises:
            RerankError: the chat template does not take these images, or the processor fails.
        """
        pictures = [part for part in parts if isinstance(part, Picture)]
        try:
            text = self._text(parts)
            if self._family.placeholders is not None:
                return self._expanded(text, pictures)
            images = [Image.fromarray((squared(each) if self._family.square else each).pixels) for each in pictures]
            bos = self.tokenizer.bos_token
            return dict(
                self._processor(
                    text=[text],
                    images=[images],
                    return_tensors="pt",
                    add_special_tokens=not (bos and text.startswith(bos)),
                    **self._family.options,
                )
            )
        except RerankError:
            raise
        except Exception as error:  # of templates and processors, of many kinds
            raise RerankError(
                f"{self._name} cannot be asked about {len(pictures)} images ({first_line(error)}): use another model, "
                'or rerank.composition = "canvas"'
            ) from error

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text inside of an answer."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(self, parts: Sequence[str | Picture]) -> str:
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
        messages = [{"role": "user", "content": content}]
        return str(self._template.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _expanded(self, text: str, pictures: Sequence[Picture]) -> Inputs:
        """Repeat the placeholder of each picture as often as it has tokens."""
        bos = self.tokenizer.bos_token
        tokens = self.tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        if (shown := tokens.count(self.image_token_id)) != len(pictures):
            raise RerankError(
                f"the chat template of {self._name} shows {shown} of {len(pictures)} images: use a model that was "
                "tuned to chat about images"
            )
        processed = [self.picture(picture) for picture in pictures]
        counts = iter([count for count, _ in processed])
        ids = [each for token in tokens for each in [token] * (next(counts) if token == self.image_token_id else 1)]
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self._family.token_types:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token_id).long()
        for key in processed[0][1]:
            inputs[key] = torch.cat([tensors[key] for _, tensors in processed])
        return inputs


#: Inputs with a value per token, and the value for text.
_PER_TOKEN = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}


def extended(inputs: Inputs, ids: Sequence[int]) -> Inputs:
    """Append token ids of text to the inputs of one prompt."""
    if not ids:
        return inputs
    tail = torch.tensor([list(ids)])
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tail], 1)}
    for key, value in _PER_TOKEN.items():
        if key in inputs:
            longer[key] = torch.cat([inputs[key], torch.full_like(tail, value).to(inputs[key].dtype)], 1)
    return longer
