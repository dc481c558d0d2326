"""A judge on this machine: a vision-language model of transformers, read by the probabilities of its first token."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jzi.encode.encoders.hf_model import quiet_transformers
from jzi.errors import RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges import prompts
from jzi.rerank.judges.compose import CANVAS, GRAY
from jzi.rerank.judges.families import family_of
from jzi.rerank.judges.labels import LabelTokens, Tokens, contexts, label_log_probabilities
from jzi.rerank.judges.model_files import find_folder, load_model, model_fingerprint
from jzi.rerank.judges.network import Network, Prompt
from jzi.rerank.judges.prompter import Prompter
from jzi.rerank.question import Composition, Kind, Picture, Question, Reading
from jzi.store.plain import share_text

#: Questions after which the mass of the labels is judged, and the mean below which answers are read from text.
FIRST_QUESTIONS, LEAST_MASS = 20, 0.2

#: Tokens of an answer that is read from text, and of a photo's description.
TEXT_TOKENS, DESCRIPTION_TOKENS = 8, 60


@dataclass(frozen=True)
class _Thought:
    """Token ids up to and including "Answer:", and the number of tokens that were generated for it."""

    ids: tuple[int, ...]
    generated: int


class LocalJudge:
    """A vision-language model on this machine. It is a `Judge`, and a `ResumingJudge`.

    If the labels of the first questions of a kind have little of the probability, later answers of that kind are read
    from text. That depends on neither batches nor interruptions: `resume` takes the first answers that were kept.

    Args:
        network: the model.
        name: for reports.
        fingerprint: of everything that answers depend on, apart from the question.
        composition: how images are shown.
        config: settings; those of prompts, batches and thinking are used.

    Attributes:
        notes: what the user should know about the answers, such as that the model does not follow the format.
        first_questions: number of answers of a kind after which it is decided how later ones are read.
    """

    first_questions = FIRST_QUESTIONS

    def __init__(
        self,
        network: Network,
        *,
        name: str,
        fingerprint: str,
        composition: Composition,
        config: RerankConfig,
    ) -> None:
        self.name, self.fingerprint, self.composition = name, fingerprint, composition
        self.notes: list[str] = []
        self.network = network
        self._reason, self._batch = config.reason, config.batch_size
        self._labels = LabelTokens(network.tokenizer)
        self._masses: dict[Kind, list[float]] = {}
        self._from_text: set[Kind] = set()
        self._sizes: dict[tuple[Any, ...], int] = {}
        self._photo = ""
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
        network = Network(model, prompter, family, name)
        return cls(network, name=name, fingerprint=fingerprint, composition=composition, config=config)

    def estimate(self, question: Question) -> tuple[int, int]:
        """Numbers of tokens of a question and of its answer; the network is not run.

        Raises:
            RerankError: the model does not take the question's images.
        """
        shapes = [picture.pixels.shape for picture in (question.photo, *question.crops)]
        key = (question.kind, *shapes)
        describes = question.kind == "describe"
        if key not in self._sizes:
            prompt = self.network.prompt(prompts.seen(question.crops[0]) if describes else self._parts(question))
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
            batch, began = self._undecided(questions[start : start + self._batch]), time.perf_counter()
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
            for question, reading in zip(batch, readings, strict=True):
                self._watch(question.kind, reading)
                yield replace(reading, seconds=seconds)
            start += len(batch)

    def resume(self, kind: Kind, readings: Sequence[Reading]) -> None:
        """Continue as if these had been the first answers.

        Args:
            kind: of the questions.
            readings: the first `first_questions` that were kept, in the order in which they were given.
        """
        self._masses[kind] = []
        self._from_text.discard(kind)
        for reading in readings:
            self._watch(kind, reading)
        if any(reading.text or reading.abstained for reading in readings):  # earlier ones were removed
            self._from_text.add(kind)

    # Questions

    def _undecided(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions up to one after which it is decided how answers of its kind are read, or all."""
        counts = Counter({kind: len(masses) for kind, masses in self._masses.items()})
        for number, question in enumerate(questions, 1):
            counts[question.kind] += 1
            if counts[question.kind] == FIRST_QUESTIONS:
                return questions[:number]
        return questions

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
        asked = [self.network.prompt(self._parts(question)) for question in questions]
        thoughts = self._thoughts(asked) if self._reason else [_Thought((), 0) for _ in asked]
        full = [prompt.then(thought.ids) for prompt, thought in zip(asked, thoughts, strict=True)]
        read = self._texts(full, labels) if kind in self._from_text else self._probabilities(full, labels)
        return [
            replace(reading, tokens_in=prompt.tokens, tokens_out=reading.tokens_out + thought.generated)
            for reading, prompt, thought in zip(read, asked, thoughts, strict=True)
        ]

    def _parts(self, question: Question) -> list[str | Picture]:
        return prompts.parts(question, self.composition, self._reason)

    def _probabilities(self, asked: list[Prompt], labels: Sequence[tuple[str, ...]]) -> list[Reading]:
        """Read the probabilities of labels."""
        ways = [[self._labels.of(label) for label in each] for each in labels]
        following: list[dict[Tokens, Tensor]] = [{(): first[-1]} for first in self.network.following(asked, 1)]
        for i, each in enumerate(ways):
            for start in contexts(each):
                [after] = self.network.following([asked[i].then(start)], len(start) + 1)
                following[i] |= {start[: n + 1]: after[n + 1] for n in range(len(start))}
        readings = []
        for each, known in zip(ways, following, strict=True):
            values = label_log_probabilities(each, known)
            readings.append(Reading(tuple(values), min(sum(map(math.exp, values)), 1.0)))
        return readings

    def _texts(self, asked: list[Prompt], labels: Sequence[tuple[str, ...]]) -> list[Reading]:
        """Read labels from generated texts."""
        readings = []
        for ids, choices in zip(self.network.generate(asked, TEXT_TOKENS), labels, strict=True):
            text = self.network.tokenizer.decode(ids, skip_special_tokens=True)
            found = prompts.find_label(text, choices)
            values = prompts.read_label(found and found[0], len(choices))
            readings.append(Reading(values, text=text.strip(), tokens_out=len(ids), abstained=found is None))
        return readings

    def _thoughts(self, asked: list[Prompt]) -> list[_Thought]:
        """Generate texts up to "Answer:", which is appended if it lacks."""
        tokenizer, thoughts = self.network.tokenizer, []
        for ids in self.network.generate(asked, self._reason, stop=prompts.ANSWER):
            text = tokenizer.decode(ids, skip_special_tokens=True).partition(prompts.ANSWER)[0]
            thoughts.append(_Thought(self.network.text_ids(f"{text.rstrip()}\n{prompts.ANSWER}"), len(ids)))
        return thoughts

    def _described(self, questions: Sequence[Question]) -> list[Reading]:
        """Compare how probable the photo's description is, given the crop and given a gray image."""
        return [self._description(question.photo, question.crops[0]) for question in questions]

    def _description(self, photo: Picture, crop: Picture) -> Reading:
        tokens_out = 0
        if photo.digest not in self._descriptions:
            [ids] = self.network.generate([self.network.prompt(prompts.describe(photo))], DESCRIPTION_TOKENS)
            self._descriptions[photo.digest], tokens_out = ids, len(ids)
        ids = self._descriptions[photo.digest]
        prompt = self.network.prompt(prompts.seen(crop)).then(ids)
        if not ids:
            return Reading((0.0,), tokens_in=prompt.tokens, abstained=True)
        key = crop.pixels.shape
        if key not in self._unseen:
            gray = Picture(np.full_like(crop.pixels, GRAY))
            self._unseen[key] = self._mean_log_probability(self.network.prompt(prompts.seen(gray)).then(ids), ids)
        value = self._mean_log_probability(prompt, ids) - self._unseen[key]
        return Reading((value,), tokens_in=prompt.tokens, tokens_out=tokens_out)

    def _mean_log_probability(self, prompt: Prompt, ids: Sequence[int]) -> float:
        [following] = self.network.following([prompt], len(ids) + 1)
        return float(following[torch.arange(len(ids)), torch.tensor(ids)].double().mean())

    def _watch(self, kind: Kind, reading: Reading) -> None:
        """Read answers of a kind from text after the first ones if these were rarely among the labels."""
        masses = self._masses.setdefault(kind, [])
        if len(masses) == FIRST_QUESTIONS:
            return
        masses.append(reading.mass)
        mean = sum(masses) / len(masses)
        if len(masses) == FIRST_QUESTIONS and mean < LEAST_MASS:
            self._from_text.add(kind)
            note = (
                f"{self.name} does not answer in the requested format (the labels of the first {len(masses)} questions "
                f"have {share_text(mean)} of the probability): its answers are read from generated text"
            )
            self.notes += [note] if note not in self.notes else []

    def _forget(self) -> None:
        self._photo = ""
        self._descriptions.clear()
        self._unseen.clear()
        self.network.forget()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch raises a plain `RuntimeError`."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
