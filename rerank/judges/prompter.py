"""Make the inputs of a vision-language model from texts and pictures, with its own chat template and processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jzi.errors import RerankError, first_line
from jzi.rerank.judges.compose import squared
from jzi.rerank.judges.families import Family, Inputs, qwen_placeholders
from jzi.rerank.question import Picture


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
            if family.placeholders is qwen_placeholders:  # their processors need torchvision, for videos
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
