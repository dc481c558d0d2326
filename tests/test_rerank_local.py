"""Claims about a judge on this machine, with tiny models of random weights, loaded as real ones are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jzi.errors import RerankError
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Budget
from jzi.rerank.judges import local, prompts
from jzi.rerank.judges.labels import contexts, label_log_probabilities
from jzi.rerank.judges.local import LocalJudge
from jzi.rerank.judgments import Judgments
from jzi.rerank.question import Kind, Picture, Question, Reading
from jzi.tests.tiny_vlm import build

FAMILIES = ("llava", "llava_next", "idefics3", "gemma3", "qwen2_5_vl")

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        return root / family if (root / family).is_dir() else build(family, root / family)

    return folder


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """A photo and five crops, all square: some families pad others."""
    generator = np.random.default_rng(0)
    sides = (40, 28, 28, 28, 28, 28)
    return [Picture(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]


def load(folder: Path, **settings: Any) -> LocalJudge:
    return LocalJudge.load(folder, RerankConfig(**settings), "cpu")


def pairs(pictures: list[Picture]) -> list[Question]:
    photo, *crops = pictures
    return [Question("pair", photo, (a, b)) for a in crops for b in crops if a is not b]


def values(readings: list[Reading]) -> np.ndarray:
    return np.array([reading.log_probabilities for reading in readings])


# What is read


def first_scores(folder: Path, judge: LocalJudge, question: Question) -> tuple[torch.Tensor, Any]:
    """Log-probabilities of the first token by `generate`, with the processor and the chat template of the folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    parts = prompts.parts(question, judge.composition, 0)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    if model.config.model_type == "qwen2_5_vl":  # its processor needs torchvision
        inputs = judge.network.prompt(parts).inputs
    else:
        processor = AutoProcessor.from_pretrained(folder)
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [Image.fromarray(part.pixels) for part in parts if isinstance(part, Picture)]
        options = {"do_image_splitting": False} if model.config.model_type == "idefics3" else {}
        inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False, **options)
    made = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True)
    return made.scores[0][0].log_softmax(-1), judge.network.tokenizer


@pytest.mark.parametrize("composition", ["images", "canvas"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_have_the_probabilities_of_the_first_token_that_the_model_would_generate(
    family: str, composition: str, folder_of: Folders, pictures: list[Picture]
) -> None:
    judge = load(folder_of(family), composition=composition)
    question = Question("pair", pictures[0], (pictures[1], pictures[2]))
    [reading] = judge.answer([question])
    scores, tokenizer = first_scores(folder_of(family), judge, question)
    texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    sets = [[i for i, text in enumerate(texts) if text == label] for label in ("A", "B")]
    assert [len(each) for each in sets] == [2, 2]  # "A" and " A"
    expected = [float(scores[each].logsumexp(0)) for each in sets]
    np.testing.assert_allclose(reading.log_probabilities, expected, atol=1e-5)
    assert reading.mass == pytest.approx(sum(map(math.exp, expected)), abs=1e-6)
    assert not reading.abstained
    assert (reading.tokens_in, reading.tokens_out) == judge.estimate(question)


def spelled(judge: LocalJudge, question: Question, text: str) -> float:
    """Log-probability of a text as an answer, by a forward pass over all of it."""
    ids = judge.network.tokenizer.encode(text, add_special_tokens=False)
    prompt = judge.network.prompt(prompts.parts(question, judge.composition, 0)).then(ids)
    with torch.inference_mode():
        logits = judge.network.model(**prompt.inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
    return float(logits[torch.arange(len(ids)), torch.tensor(ids)].sum())


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_number_of_two_tokens_takes_its_probability_from_that_of_its_first_one(
    family: str, folder_of: Folders, pictures: list[Picture]
) -> None:
    judge = load(folder_of(family), composition="images")
    question = Question("score", pictures[0], (pictures[1],))
    [reading] = judge.answer([question])

    def probability(label: str) -> float:
        return sum(math.exp(spelled(judge, question, text)) for text in (label, f" {label}"))

    expected = [probability(label) for label in question.labels]
    expected[1] -= expected[10]
    np.testing.assert_allclose(np.exp(reading.log_probabilities), expected, rtol=1e-3)
    assert reading.mass == pytest.approx(sum(expected), rel=1e-3)


def test_a_phrase_has_the_probability_of_all_of_its_tokens(folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of("qwen2_5_vl"))
    question = Question("words", pictures[0], (pictures[1],))
    [reading] = judge.answer([question])
    expected = [
        np.logaddexp(*(spelled(judge, question, text) for text in (each, f" {each}"))) for each in question.labels
    ]
    np.testing.assert_allclose(reading.log_probabilities, expected, atol=1e-3)


def test_a_label_that_begins_another_one_keeps_what_the_other_leaves() -> None:
    ways = [[(1,)], [(1, 0)], [(2,), (3,)], [(1, 0, 5)]]
    following = {
        (): torch.tensor([0.0, 0.5, 0.1, 0.2]).log(),
        (1,): torch.tensor([0.4, 0.6]).log(),
        (1, 0): torch.tensor([0.0, 0, 0, 0, 0, 0.25]).log(),
    }
    assert contexts(ways) == [(1, 0)]
    np.testing.assert_allclose(np.exp(label_log_probabilities(ways, following)), [0.3, 0.15, 0.3, 0.05], rtol=1e-6)


def test_a_description_is_compared_with_that_of_a_gray_image(folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of("llava"))
    gray = Picture(np.full((28, 28, 3), 127, np.uint8))
    readings = list(judge.answer([Question("describe", pictures[0], (crop,)) for crop in (gray, *pictures[1:3])]))
    assert readings[0].log_probabilities == pytest.approx((0.0,), abs=1e-6)
    assert readings[1].log_probabilities != readings[2].log_probabilities
    assert all(len(reading.log_probabilities) == 1 for reading in readings)
    assert [reading.tokens_out > 0 for reading in readings] == [True, False, False]


def test_a_model_that_may_think_is_read_after_its_thoughts(folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of("llava"), composition="images", reason=6)
    [question] = pairs(pictures)[:1]
    seen: list[str] = []
    follow = judge.network.following

    def spy(asked: list[Any], keep: int) -> list[torch.Tensor]:
        seen.extend(judge.network.tokenizer.decode(prompt.inputs["input_ids"][0]) for prompt in asked)
        return follow(asked, keep)

    judge.network.following = spy
    [reading] = judge.answer([question])
    assert all(text.endswith("\nAnswer:") for text in seen)
    assert 0 < reading.tokens_out <= 6
    assert load(folder_of("llava"), composition="images").fingerprint != judge.fingerprint


# What is computed once


@pytest.mark.parametrize("kind", ["pair", "score"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_images_and_the_common_beginning_are_processed_once_and_change_nothing(
    family: str, kind: Kind, folder_of: Folders, pictures: list[Picture]
) -> None:
    photo, *crops = pictures
    single = [Question(kind, photo, (crop,)) for crop in crops]
    questions = pairs(pictures) if kind == "pair" else single
    readings, images, tokens = [], [], []
    for share in (True, False):
        judge = load(folder_of(family), composition="images")
        judge.network.share = share
        model = judge.network.model.model
        vision = model.visual if family.startswith("qwen") else model.vision_tower
        passes: list[int] = []
        lengths: list[int] = []
        vision.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        model.language_model.register_forward_pre_hook(
            lambda _, __, given, lengths=lengths: lengths.append(given["inputs_embeds"][..., 0].numel()),
            with_kwargs=True,
        )
        readings.append(values(list(judge.answer(questions))))
        images.append(len(passes))
        tokens.append(sum(lengths))
    np.testing.assert_allclose(*readings, atol=1e-4)
    assert images[0] == 6
    assert tokens[0] < 0.6 * tokens[1]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_nothing_of_one_photo_is_left_for_the_next(family: str, folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of(family), composition="images")
    other = [pictures[1], *pictures[2:], pictures[0]]
    list(judge.answer(pairs(pictures)[:4]))
    again = values(list(judge.answer(pairs(other)[:4])))
    fresh = values(list(load(folder_of(family), composition="images").answer(pairs(other)[:4])))
    np.testing.assert_allclose(again, fresh, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_depend_neither_on_the_batch_nor_on_what_was_asked_before(
    family: str, folder_of: Folders, pictures: list[Picture]
) -> None:
    photo, *crops = pictures
    questions = [*pairs(pictures)[:3], Question("yesno", photo, (crops[0],)), Question("list", photo, tuple(crops[:3]))]
    together = list(load(folder_of(family), composition="images", batch_size=8).answer(questions))
    plain = load(folder_of(family), composition="images", batch_size=1)
    plain.network.share = False
    alone = list(plain.answer(questions))
    for a, b, question in zip(together, alone, questions, strict=True):
        assert len(a.log_probabilities) == len(question.labels)
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-4)


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    folder_of: Folders, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = pairs(pictures)[:6]
    judge = load(folder_of("llava"), composition="images", batch_size=6)
    expected = values(list(judge.answer(questions)))
    follow, sizes, room = judge.network.following, [], 2

    def limited(asked: list[Any], keep: int) -> list[torch.Tensor]:
        sizes.append(len(asked))
        if len(asked) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return follow(asked, keep)

    monkeypatch.setattr(judge.network, "following", limited)
    np.testing.assert_allclose(values(list(judge.answer(questions))), expected, atol=1e-5)
    assert max(sizes[1:]) <= 3
    room = 0
    with pytest.raises(RerankError, match="does not fit into memory"):
        list(judge.answer(questions))


def test_an_estimate_runs_no_network(
    folder_of: Folders, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load(folder_of("qwen2_5_vl"), reason=7)
    photo, *crops = pictures
    questions = [Question("pair", photo, (crops[0], crops[1])), Question("describe", photo, (crops[0],))]
    expected = [reading.tokens_in for reading in judge.answer(questions)]
    monkeypatch.setattr(judge.network, "model", None)
    assert judge.estimate(questions[0]) == (expected[0], 7)
    assert judge.estimate(questions[1])[0] >= expected[1]


# Answers in another format


def test_answers_are_read_from_text_where_the_labels_are_improbable(
    folder_of: Folders, pictures: list[Picture]
) -> None:
    judge = load(folder_of("llava"), composition="images", batch_size=5)
    questions = pairs(pictures)
    first = list(judge.answer(questions[:19]))
    assert judge.notes == []
    first += judge.answer(questions[19:20])
    assert all(reading.mass < 0.2 and not reading.text for reading in first)
    assert "read from generated text" in judge.notes[0]
    texts = iter(["B is it", " A.", "Neither"])
    tokenizer = judge.network.tokenizer
    judge.network.generate = lambda asked, tokens: [tokenizer.encode(next(texts)) for _ in asked]
    readings = list(judge.answer(questions[:3]))
    gaps = [reading.log_probabilities[0] - reading.log_probabilities[1] for reading in readings]
    assert gaps == pytest.approx([-2, 2, 0])
    assert [reading.abstained for reading in readings] == [False, False, True]
    assert [reading.text for reading in readings] == ["B is it", "A.", "Neither"]
    assert all(sum(map(math.exp, reading.log_probabilities)) == pytest.approx(1) for reading in readings)
    [other] = judge.answer([Question("yesno", pictures[0], (pictures[1],))])
    assert other.text == ""  # another kind of question


@pytest.mark.parametrize(("budgets", "size"), [((7, 6, None), 8), ((19, None), 4), ((20, None), 3), ((24, None), 5)])
def test_an_interruption_does_not_change_how_answers_are_read(
    budgets: tuple[int | None, ...], size: int, folder_of: Folders, pictures: list[Picture], tmp_path: Path
) -> None:
    photo, *crops = pictures
    questions = [Question("yesno", photo, (crop,)) for crop in crops] + pairs(pictures)
    questions += [Question("pair", photo, (photo, crop)) for crop in crops]
    runs = {}
    for name, parts, batch_size in [("whole", (None,), 6), ("interrupted", budgets, size)]:
        with Judgments.open(tmp_path / name) as judgments:
            for calls in parts:
                judge = load(folder_of("llava"), composition="images", batch_size=batch_size)
                asker = Asker(judge, judgments, RerankConfig(), Budget(calls=calls))
                runs[name] = asker.ask(questions)
            assert sum("read from generated text" in note for note in judge.notes) == 1
    whole, interrupted = runs["whole"], runs["interrupted"]
    assert [i for i, reading in enumerate(whole) if reading.tokens_out] == [25, 26, 27, 28, 29]
    assert [reading.text for reading in interrupted] == [reading.text for reading in whole]
    np.testing.assert_allclose([r.mass for r in interrupted], [r.mass for r in whole], atol=1e-4)


def test_answers_are_read_from_text_where_only_such_are_left(folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of("llava"), composition="images")
    judge.resume("pair", [Reading((-2.0, -0.1), text="B", tokens_out=2)])
    [reading] = judge.answer(pairs(pictures)[:1])
    assert reading.tokens_out > 0


def test_generated_text_ends_where_the_answer_does(folder_of: Folders, pictures: list[Picture]) -> None:
    judge = load(folder_of("llava"), composition="images")
    prompt = judge.network.prompt(prompts.parts(pairs(pictures)[0], "images", 0))
    [[first, *_]] = judge.network.generate([prompt], local.TEXT_TOKENS)
    judge.network.model.generation_config.eos_token_id = first
    [ids] = judge.network.generate([prompt], local.TEXT_TOKENS)
    assert ids == [first]


def test_models_that_were_trained_on_one_image_see_a_canvas(folder_of: Folders) -> None:
    shown = {family: load(folder_of(family)).composition for family in FAMILIES}
    assert {family for family, composition in shown.items() if composition == "canvas"} == {"llava", "llava_next"}


# Fingerprint


def test_the_fingerprint_is_of_what_answers_depend_on(folder_of: Folders, tmp_path: Path) -> None:
    folder = folder_of("llava")
    judge = load(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert load(tmp_path / "copy", batch_size=1, top=7).fingerprint == judge.fingerprint
    (tmp_path / "copy" / "chat_template.jinja").write_text(
        "{% for part in messages[0]['content'] %}{{ part['text'] if 'text' in part else '<image>' }}{% endfor %}"
    )
    other = build("llava", tmp_path / "other", seed=1)
    prints = [judge, load(folder, composition="images"), load(folder, reason=9), load(tmp_path / "copy"), load(other)]
    assert len({each.fingerprint for each in prints}) == len(prints)


# What is refused


def refused(folder: Path | str, match: str, **settings: Any) -> None:
    with pytest.raises(RerankError, match=match) as error:
        LocalJudge.load(folder, RerankConfig(**settings), "cpu")
    assert "\n" not in str(error.value)


@pytest.fixture
def copied(folder_of: Folders, tmp_path: Path) -> Path:
    """A LLaVA to damage."""
    shutil.copytree(folder_of("llava"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"model_type": "blip_9"}, "'blip_9' model: use one of gemma3"),
        ({"model_type": ["llava"]}, "use one of gemma3"),
        ({"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}}, "code of its own, which jzi does not run"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "would load other code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "would load other code"),
        ({"text_config": {"attn_implementation": "someone/kernel"}}, "would load other code"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 10**6}}, "num_hidden_layers = 1000000"),
        ({"text_config": {"model_type": "llama", "vocab_size": 10**7}}, "more than there are"),
        ({"image_token_id": None, "image_token_index": None}, "no image_token_id"),
        ({"model_type": "internvl"}, "needs torchvision"),
    ],
)
def test_a_config_of_another_kind_is_refused(entries: dict[str, Any], match: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **entries}))
    refused(copied, match)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"5", b"true", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": "' + b"x" * 2**21 + b'"}']
)
def test_a_config_that_is_none_is_refused(text: bytes, copied: Path) -> None:
    (copied / "config.json").write_bytes(text)
    refused(copied, "config.json|use one of")


def test_code_in_the_folder_is_not_run(copied: Path, tmp_path: Path) -> None:
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Processor: pass\n")
    for name in ("processor_config.json", "tokenizer_config.json"):
        entries = json.loads((copied / name).read_text())
        entries["auto_map"] = {"AutoProcessor": "evil.Processor", "AutoTokenizer": ["evil.Processor", None]}
        entries["processor_class"] = entries["tokenizer_class"] = "Processor"
        (copied / name).write_text(json.dumps(entries))
    refused(copied, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    for family in ("llava", "qwen2_5_vl"):
        refused(build(family, tmp_path / family, chat_template=False), "no chat template")


def test_a_chat_template_without_images_is_refused(copied: Path, pictures: list[Picture]) -> None:
    (copied / "chat_template.jinja").write_text("{% for message in messages %}{{ message['role'] }}{% endfor %}")
    judge = load(copied)
    with pytest.raises(RerankError, match="shows 0 of 1 images"):
        list(judge.answer(pairs(pictures)[:1]))


def test_a_chat_template_that_fails_is_refused(copied: Path, pictures: list[Picture]) -> None:
    (copied / "chat_template.jinja").write_text("{{ raise_exception('no images here') }}")
    with pytest.raises(RerankError, match="no images here"):
        list(load(copied).answer(pairs(pictures)[:1]))


def test_pickles_are_not_read(copied: Path, tmp_path: Path) -> None:
    weights = copied / "model.safetensors"
    torch.save({}, copied / "pytorch_model.bin")
    weights.unlink()
    refused(copied, "does not read pickles")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_damaged_file_is_one_sentence(name: str, copied: Path) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) * 2 // 3])
    refused(copied, "cannot be loaded|more than there are")


def test_missing_weights_are_named(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    save_file(
        {**{k: v for k, v in weights.items() if k != name}, "unused": torch.zeros(9999)}, copied / "model.safetensors"
    )
    refused(copied, "lacks 1 weights")


def test_weights_that_are_not_finite_are_noticed(copied: Path, pictures: list[Picture]) -> None:
    judge = load(copied)
    with torch.inference_mode():
        next(judge.network.model.parameters()).fill_(math.nan)
        judge.network.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(RerankError, match="not finite"):
        list(judge.answer(pairs(pictures)[:1]))


def test_what_is_neither_a_folder_nor_on_the_hub_is_refused(tmp_path: Path) -> None:
    refused("someone/no-such-model", "not a local folder and cannot be downloaded")
    refused(tmp_path, "no config.json")
    refused(str(tmp_path / "nothing here"), "not a local folder")


def test_quantisation_needs_bitsandbytes(folder_of: Folders) -> None:
    refused(folder_of("llava"), "needs bitsandbytes", quantize=4)


def test_what_is_downloaded_is_announced_with_its_size(
    folder_of: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from types import SimpleNamespace

    from huggingface_hub.errors import LocalEntryNotFoundError

    from jzi.rerank.judges import model_files

    folder, asked = folder_of("llava"), []

    def snapshot(name: str, local_files_only: bool = False, **patterns: Any) -> str:
        asked.append(patterns["allow_patterns"])
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(folder)

    sizes = [
        SimpleNamespace(rfilename="a.safetensors", size=14 * 10**9),
        SimpleNamespace(rfilename="b.bin", size=10**12),
    ]
    monkeypatch.setattr(model_files, "snapshot_download", snapshot)
    monkeypatch.setattr(model_files, "hf_hub_download", lambda *_: str(folder / "config.json"))
    monkeypatch.setattr(
        model_files, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=sizes))
    )
    assert model_files.find_folder("someone/llava") == folder
    assert "downloading someone/llava from the Hugging Face hub: 14.0 GB" in capsys.readouterr().err
    assert not any("bin" in pattern or "py" in pattern for patterns in asked for pattern in patterns)
