"""A judge on this machine: a vision-language model of transformers, read by the probabilities of its first token."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jzi.encode.hf_model import quiet_transformers
from jzi.errors import RerankError
from jzi.rerank import prompts
from jzi.rerank.compose import CANVAS, GRAY
from jzi.rerank.config import RerankConfig
from jzi.rerank.families import Family, Inputs, Prompter, extended, family_of
from jzi.rerank.labels import LabelTokens, Tokens, contexts, label_log_probabilities
from jzi.rerank.model_files import find_folder, load_model, model_fingerprint
from jzi.rerank.question import Composition, Kind, Picture, Question, Reading

#: Questions after which the mass of the labels is judged, and the mean below which answers are read from text.
FIRST_QUESTIONS, LEAST_MASS = 20, 0.2

#: Tokens of an answer that is read from text, and of a photo's description.
TEXT_TOKENS, DESCRIPTION_TOKENS = 8, 60

#: Log-odds of the label that a text names against each other label.
TEXT_LOGIT = 2.0


@dataclass(frozen=True, eq=False)
class _Prompt:
    inputs: Inputs
    pictures: tuple[Picture, ...]

    @property
    def tokens(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    @property
    def shape(self) -> tuple[Any, ...]:
        """Prompts of equal shapes can be run together without padding."""
        return tuple((key, tuple(value.shape)) for key, value in sorted(self.inputs.items()))

    def then(self, ids: Sequence[int]) -> _Prompt:
        return replace(self, inputs=extended(self.inputs, ids))


@dataclass(frozen=True)
class _Thought:
    """Token ids up to and including "Answer:", and the number of tokens that were generated for it."""

    ids: tuple[int, ...]
    generated: int


class LocalJudge:
    """A vision-language model on this machine. It is a `Judge`.

    Args:
        model: of transformers, in eval mode, on its devices.
        prompter: makes its inputs.
        family: of the model.
        name: for reports.
        fingerprint: of everything that answers depend on, apart from the question.
        composition: how images are shown.
        config: settings; those of prompts, batches and thinking are used.

    Attributes:
        notice: what the user should know about the answers, such as that the model does not follow the format; empty
            if there is nothing.
        share: whether images and the common beginning of questions are processed once; only for families in which
            that was compared with the plain forward pass.
    """

    def __init__(
        self,
        model: Any,
        prompter: Prompter,
        family: Family,
        *,
        name: str,
        fingerprint: str,
        composition: Composition,
        config: RerankConfig,
    ) -> None:
        self.name, self.fingerprint, self.composition = name, fingerprint, composition
        self.notice = ""
        self.share = family.features is not None
        self._model, self._prompter, self._family = model, prompter, family
        self._reason, self._batch = config.reason, config.batch_size
        self._labels = LabelTokens(prompter.tokenizer)
        self._masses: dict[Kind, list[float]] = {}
        self._from_text: set[Kind] = set()
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._photo = ""
        self._features: dict[str, Tensor] = {}
        self._prefix: tuple[bytes, Any] = (b"", None)
        self._descriptions: dict[str, list[int]] = {}
        self._unseen: dict[tuple[Any, ...], float] = {}

    @classmethod
    def load(cls, name_or_folder: str | Path, config: RerankConfig, device: str | None = None) -> LocalJudge:
        """Load a model from a folder, the Hugging Face hub's local cache, or the hub.

        Args:
            name_or_folder: folder as `save_pretrained` writes it, or Hugging Face id.
            config: composition, quantisation, batch size, and tokens to think for.
            device: to compute on; a GPU if there is one by default.

        Raises:
            RerankError: the model cannot be found, loaded or asked, or is of another family.
        """
        quiet_transformers()
        name = str(name_or_folder)
        folder = find_folder(name)
        family, entries = family_of(folder)
        token = entries.get("image_token_id", entries.get("image_token_index"))
        if family.placeholders is not None and type(token) is not int:
            raise RerankError(f"the config.json of {folder} has no image_token_id: copy or download the model again")
        prompter = Prompter(name, family, folder, token if type(token) is int else -1)
        model = load_model(name, folder, family, config.quantize, device)
        composition = family.composition if config.composition == "auto" else config.composition
        fingerprint = model_fingerprint(
            folder,
            dtype=str(model.dtype),
            quantize=config.quantize,
            composition=composition,
            canvas=CANVAS,
            prompts=prompts.DIGEST,
            reason=config.reason,
        )
        return cls(
            model,
            prompter,
            family,
            name=name,
            fingerprint=fingerprint,
            composition=composition,
            config=config,
        )

    def estimate(self, question: Question) -> tuple[int, int]:
        """Numbers of tokens of a question and of its answer; the network is not run.

        Raises:
            RerankError: the model does not take the question's images.
        """
        shapes = [picture.pixels.shape for picture in (question.photo, *question.crops)]
        key = (question.kind, *shapes)
        describes = question.kind == "describe"
        if key not in self._sizes:
            prompt = self._prompt(prompts.seen(question.crops[0]) if describes else self._parts(question))
            self._sizes[key] = prompt.tokens + (DESCRIPTION_TOKENS if describes else 0)
        answer = TEXT_TOKENS if question.kind in self._from_text else 0
        return self._sizes[key], DESCRIPTION_TOKENS if describes else self._reason + answer

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Answers in the order of the questions; a batch that does not fit into memory is halved.

        Args:
            questions: about one photo.

        Raises:
            RerankError: the model does not take the images, its probabilities are not finite, or a single question does
                not fit into memory.
        """
        start = 0
        while start < len(questions):
            batch, began = questions[start : start + self._batch], time.perf_counter()
            try:
                readings = self._read(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._forget()
                if len(batch) == 1:
                    raise RerankError(
                        f"a question to {self.name} does not fit into memory: use a smaller model, smaller "
                        "rerank.crop_pixels and rerank.photo_pixels, or rerank.quantize = 4"
                    ) from error
                self._batch = len(batch) // 2
                continue
            seconds = (time.perf_counter() - began) / len(batch)
            yield from (replace(reading, seconds=seconds) for reading in readings)
            start += len(batch)

    # Questions

    def _read(self, questions: Sequence[Question]) -> list[Reading]:
        if questions[0].photo.digest != self._photo:
            self._forget()
            self._photo = questions[0].photo.digest
        readings: dict[int, Reading] = {}
        for kind in dict.fromkeys(question.kind for question in questions):
            chosen = [i for i, question in enumerate(questions) if question.kind == kind]
            read = self._described if kind == "describe" else self._labelled
            readings |= dict(zip(chosen, read([questions[i] for i in chosen]), strict=True))
        return [readings[i] for i in range(len(questions))]

    def _labelled(self, questions: Sequence[Question]) -> list[Reading]:
        """Answer questions of one kind that have labels."""
        kind, labels = questions[0].kind, [question.labels for question in questions]
        asked = [self._prompt(self._parts(question)) for question in questions]
        thoughts = self._thoughts(asked) if self._reason else [_Thought((), 0) for _ in asked]
        full = [prompt.then(thought.ids) for prompt, thought in zip(asked, thoughts, strict=True)]
        read = self._texts(full, labels) if kind in self._from_text else self._probabilities(full, labels)
        self._watch(kind, read)
        return [
            replace(reading, tokens_in=prompt.tokens, tokens_out=reading.tokens_out + thought.generated)
            for reading, prompt, thought in zip(read, asked, thoughts, strict=True)
        ]

    def _parts(self, question: Question) -> list[str | Picture]:
        return prompts.parts(question, self.composition, self._reason)

    def _prompt(self, parts: Sequence[str | Picture]) -> _Prompt:
        return _Prompt(self._prompter.inputs(parts), tuple(part for part in parts if isinstance(part, Picture)))

    def _probabilities(self, asked: list[_Prompt], labels: Sequence[tuple[str, ...]]) -> list[Reading]:
        """Read the probabilities of labels."""
        ways = [[self._labels.of(label) for label in each] for each in labels]
        following: list[dict[Tokens, Tensor]] = [{(): first[-1]} for first in self._following(asked, 1)]
        for i, each in enumerate(ways):
            for start in contexts(each):
                [after] = self._following([asked[i].then(start)], len(start) + 1)
                following[i] |= {start[: n + 1]: after[n + 1] for n in range(len(start))}
        readings = []
        for each, known in zip(ways, following, strict=True):
            values = label_log_probabilities(each, known)
            readings.append(Reading(tuple(values), min(sum(map(math.exp, values)), 1.0)))
        return readings

    def _texts(self, asked: list[_Prompt], labels: Sequence[tuple[str, ...]]) -> list[Reading]:
        """Read labels from generated texts."""
        readings = []
        for ids, choices in zip(self._generate(asked, TEXT_TOKENS), labels, strict=True):
            text = self._prompter.tokenizer.decode(ids, skip_special_tokens=True)
            found = prompts.find_label(text, choices)
            logits = np.zeros(len(choices))
            if found is not None:
                logits[found] = TEXT_LOGIT
            values = logits - np.log(np.exp(logits).sum())
            readings.append(
                Reading(tuple(values.tolist()), text=text.strip(), tokens_out=len(ids), abstained=found is None)
            )
        return readings

    def _thoughts(self, asked: list[_Prompt]) -> list[_Thought]:
        """Generate texts up to "Answer:", which is appended if it lacks."""
        tokenizer, thoughts = self._prompter.tokenizer, []
        for ids in self._generate(asked, self._reason, stop=prompts.ANSWER):
            text = tokenizer.decode(ids, skip_special_tokens=True).partition(prompts.ANSWER)[0]
            thoughts.append(_Thought(self._prompter.text_ids(f"{text.rstrip()}\n{prompts.ANSWER}"), len(ids)))
        return thoughts

    def _described(self, questions: Sequence[Question]) -> list[Reading]:
        """Compare how probable the photo's description is, given the crop and given a gray image."""
        return [self._description(question.photo, question.crops[0]) for question in questions]

    def _description(self, photo: Picture, crop: Picture) -> Reading:
        tokens_out = 0
        if photo.digest not in self._descriptions:
            [ids] = self._generate([self._prompt(prompts.describe(photo))], DESCRIPTION_TOKENS)
            self._descriptions[photo.digest], tokens_out = ids, len(ids)
        ids = self._descriptions[photo.digest]
        prompt = self._prompt(prompts.seen(crop)).then(ids)
        if not ids:
            return Reading((0.0,), tokens_in=prompt.tokens, abstained=True)
        key = crop.pixels.shape
        if key not in self._unseen:
            gray = Picture(np.full_like(crop.pixels, GRAY))
            self._unseen[key] = self._mean_log_probability(self._prompt(prompts.seen(gray)).then(ids), ids)
        value = self._mean_log_probability(prompt, ids) - self._unseen[key]
        return Reading((value,), tokens_in=prompt.tokens, tokens_out=tokens_out)

    def _mean_log_probability(self, prompt: _Prompt, ids: Sequence[int]) -> float:
        [following] = self._following([prompt], len(ids) + 1)
        return float(following[torch.arange(len(ids)), torch.tensor(ids)].double().mean())

    def _watch(self, kind: Kind, readings: Sequence[Reading]) -> None:
        """Read answers of a kind from text from now on if the first ones were rarely among the labels."""
        masses = self._masses.setdefault(kind, [])
        if kind in self._from_text or len(masses) >= FIRST_QUESTIONS:
            return
        masses += [reading.mass for reading in readings]
        mean = sum(masses) / len(masses)
        if len(masses) >= FIRST_QUESTIONS and mean < LEAST_MASS:
            self._from_text.add(kind)
            self.notice = (
                f"{self.name} does not answer in the requested format (the labels of the first {len(masses)} questions "
                f"have {mean:.1%} of the probability): its answers are read from generated text"
            )

    # The network

    def _following(self, asked: list[_Prompt], keep: int) -> list[Tensor]:
        """Log-probabilities of the tokens after each of the last `keep` tokens, (keep, token) of each prompt."""
        found: dict[int, Tensor] = {}
        for chosen in _alike(asked):
            group = [asked[i] for i in chosen]
            logits = self._forward_shared(group, keep) if self.share else self._forward(group, keep)
            if not bool(logits.isfinite().all()):
                raise RerankError(f"{self.name} computed logits that are not finite: check its weights and precision")
            found |= dict(zip(chosen, logits.float().log_softmax(-1).cpu(), strict=True))
        return [found[i] for i in range(len(asked))]

    def _forward(self, group: list[_Prompt], keep: int) -> Tensor:
        return self._model(**self._joined(group), logits_to_keep=keep, use_cache=False).logits

    def _forward_shared(self, group: list[_Prompt], keep: int) -> Tensor:
        """As `_forward`, with the features of each image and the keys and values of the common beginning kept."""
        model, inputs = self._model, self._joined(group, without=("pixel_values",))
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
        return self._model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=keep,
        )

    def _common(self, group: list[_Prompt], ids: Tensor) -> int:
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
            self._features[picture.digest] = self._family.features(self._model, image)
        return self._features[picture.digest]

    def _generate(self, asked: list[_Prompt], tokens: int, stop: str = "") -> list[list[int]]:
        """Generate the most probable tokens of each prompt, without those that end the answer."""
        tokenizer = self._prompter.tokenizer
        options: dict[str, Any] = {"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}
        special = {*tokenizer.all_special_ids}
        found: dict[int, list[int]] = {}
        for chosen in _alike(asked):
            inputs = self._joined([asked[i] for i in chosen])
            made = self._model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
            rows = made[:, inputs["input_ids"].shape[1] :].tolist()
            found |= {i: [token for token in row if token not in special] for i, row in zip(chosen, rows, strict=True)}
        return [found[i] for i in range(len(asked))]

    def _joined(self, group: list[_Prompt], without: tuple[str, ...] = ()) -> Inputs:
        keys = [key for key in group[0].inputs if key not in without]
        return self._moved({key: torch.cat([prompt.inputs[key] for prompt in group]) for key in keys})

    def _moved(self, inputs: Inputs) -> Inputs:
        """To the model's device, and its precision."""
        device, dtype = self._model.device, self._model.dtype
        return {
            key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in inputs.items()
        }

    def _forget(self) -> None:
        self._photo, self._prefix = "", (b"", None)
        self._features.clear()
        self._descriptions.clear()
        self._unseen.clear()
        self._prompter.forget()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch raises a plain `RuntimeError`."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _alike(asked: Sequence[_Prompt]) -> list[list[int]]:
    """Indices of prompts of equal shapes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, prompt in enumerate(asked):
        groups.setdefault(prompt.shape, []).append(i)
    return list(groups.values())
