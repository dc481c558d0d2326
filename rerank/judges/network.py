"""Run a vision-language model: probabilities of the next tokens, and generated ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jzi.errors import RerankError
from jzi.rerank.judges.families import Family, Inputs
from jzi.rerank.judges.prompter import Prompter, extended
from jzi.rerank.question import Picture


@dataclass(frozen=True, eq=False)
class Prompt:
    """Inputs of a prompt, and its pictures in reading order."""

    inputs: Inputs
    pictures: tuple[Picture, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens, those of images included."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def shape(self) -> tuple[Any, ...]:
        """Prompts of equal shapes can be run together without padding."""
        return tuple((key, tuple(value.shape)) for key, value in sorted(self.inputs.items()))

    def then(self, ids: Sequence[int]) -> Prompt:
        """Append token ids of text."""
        return replace(self, inputs=extended(self.inputs, ids))


class Network:
    """A model and what it has computed about one photo.

    Args:
        model: of transformers, in eval mode, on its devices.
        prompter: makes its inputs.
        family: of the model.
        name: for error messages.

    Attributes:
        model: of transformers.
        tokenizer: of the model.
        share: whether images and the common beginning of prompts are processed once; only for families in which that
            was compared with the plain forward pass.
    """

    def __init__(self, model: Any, prompter: Prompter, family: Family, name: str) -> None:
        self.tokenizer, self.text_ids = prompter.tokenizer, prompter.text_ids
        self.share = family.features is not None
        self.model, self._prompter, self._family, self._name = model, prompter, family, name
        self._features: dict[str, Tensor] = {}
        self._prefix: tuple[bytes, Any] = (b"", None)

    def forget(self) -> None:
        """Drop what was computed about a photo."""
        self._prefix = (b"", None)
        self._features.clear()
        self._prompter.forget()

    def prompt(self, parts: Sequence[str | Picture]) -> Prompt:
        """Make the inputs of a prompt.

        Args:
            parts: texts and pictures, in reading order.

        Raises:
            RerankError: the model does not take these images.
        """
        return Prompt(self._prompter.inputs(parts), tuple(part for part in parts if isinstance(part, Picture)))

    def following(self, asked: list[Prompt], keep: int) -> list[Tensor]:
        """Log-probabilities of the tokens after each of the last `keep` tokens, (keep, token) of each prompt."""
        found: dict[int, Tensor] = {}
        for chosen in _alike(asked):
            group = [asked[i] for i in chosen]
            logits = self._forward_shared(group, keep) if self.share else self._forward(group, keep)
            if not bool(logits.isfinite().all()):
                raise RerankError(f"{self._name} computed logits that are not finite: check its weights and precision")
            found |= dict(zip(chosen, logits.float().log_softmax(-1).cpu(), strict=True))
        return [found[i] for i in range(len(asked))]

    def _forward(self, group: list[Prompt], keep: int) -> Tensor:
        return self.model(**self._joined(group), logits_to_keep=keep, use_cache=False).logits

    def _forward_shared(self, group: list[Prompt], keep: int) -> Tensor:
        """As `_forward`, with the features of each image and the keys and values of the common beginning kept."""
        model, inputs = self.model, self._joined(group, without=("pixel_values",))
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        images = ids == self._prompter.image_token_id
        embedded = model.get_input_embeddings()(ids)
        features = torch.cat([self._feature(picture) for prompt in group for picture in prompt.pictures])
        embedded = embedded.masked_scatter(images[..., None], features.to(embedded))
        positions = None if self._family.positions is None else self._family.positions(model, inputs)
        common = self._common(group, ids)
        cache = None
        if common:
            key = group[0].pictures[0].digest.encode() + ids[0, :common].cpu().numpy().tobytes()
            if key != self._prefix[0]:
                first = None if positions is None else positions[:, :1, :common]
                prefix = self._run(embedded[:1, :common], mask[:1, :common], first, None, 1, use_cache=True)
                self._prefix = key, prefix.past_key_values
            cache = copy.deepcopy(self._prefix[1])
            cache.batch_repeat_interleave(len(group))
            positions = None if positions is None else positions[:, :, common:]
        return self._run(embedded[:, common:], mask, positions, cache, keep, use_cache=cache is not None).logits

    def _run(
        self, embedded: Tensor, mask: Tensor, positions: Tensor | None, cache: Any, keep: int, *, use_cache: bool
    ) -> Any:
        return self.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=keep,
        )

    def _common(self, group: list[Prompt], ids: Tensor) -> int:
        """Number of tokens before the second image, which questions about a photo have in common; 0 if they differ."""
        first = group[0].pictures[0]
        if any(len(prompt.pictures) < 2 or prompt.pictures[0].digest != first.digest for prompt in group):
            return 0
        images = (ids[0] == self._prompter.image_token_id).nonzero()[:, 0]
        length = int(images[self._prompter.picture(first)[0]])
        return length if bool((ids[:, :length] == ids[:1, :length]).all()) else 0

    def _feature(self, picture: Picture) -> Tensor:
        """What stands for a picture in the language model, (token, feature)."""
        if picture.digest not in self._features:
            assert self._family.features is not None
            image = self._moved(self._prompter.picture(picture)[1])
            self._features[picture.digest] = self._family.features(self.model, image)
        return self._features[picture.digest]

    def generate(self, asked: list[Prompt], tokens: int, stop: str = "") -> list[list[int]]:
        """Generate the most probable tokens of each prompt, without those that end the answer."""
        tokenizer = self._prompter.tokenizer
        options: dict[str, Any] = {"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}
        special = {*tokenizer.all_special_ids}
        found: dict[int, list[int]] = {}
        for chosen in _alike(asked):
            inputs = self._joined([asked[i] for i in chosen])
            made = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
            rows = made[:, inputs["input_ids"].shape[1] :].tolist()
            found |= {i: [token for token in row if token not in special] for i, row in zip(chosen, rows, strict=True)}
        return [found[i] for i in range(len(asked))]

    def _joined(self, group: list[Prompt], without: tuple[str, ...] = ()) -> Inputs:
        keys = [key for key in group[0].inputs if key not in without]
        return self._moved({key: torch.cat([prompt.inputs[key] for prompt in group]) for key in keys})

    def _moved(self, inputs: Inputs) -> Inputs:
        """To the model's device, and its precision."""
        device, dtype = self.model.device, self.model.dtype
        return {
            key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in inputs.items()
        }


def _alike(asked: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts of equal shapes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, prompt in enumerate(asked):
        groups.setdefault(prompt.shape, []).append(i)
    return list(groups.values())
