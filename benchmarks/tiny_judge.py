"""Train the tiny judge that the package includes: a LLaVA of 0.4 million weights that compares pictures.

    python -m benchmarks.tiny_judge FOLDER [--towns DEMO --towns DEMO] [--unseen DEMO]

It learns from made pictures, whose colour says which crop belongs to a photo, and from photos and crops of synthetic
towns (`jzi demo DEMO --seed 1 --photos 6000 --only-town`). It answers the question about a pair of crops, and the one
about a single crop with yes or no, in the words of `jzi.rerank.judges.prompts`; a change of those needs another
training. Its purpose is to show that re-ranking works from pictures to answers; it knows nothing of real cities.
"""

from __future__ import annotations

import colorsys
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from jzi.rerank.config import RerankConfig
from jzi.rerank.judges import prompts
from jzi.rerank.judges.compose import CANVAS, GRAY, canvas
from jzi.rerank.judges.families import FAMILIES
from jzi.rerank.judges.labels import LabelTokens
from jzi.rerank.judges.local import LocalJudge
from jzi.rerank.judges.prompter import Prompter
from jzi.rerank.question import LABELS, Judge, Kind, Picture, Question

#: Side of a canvas as the judge sees it, and of a patch, pixels; a crop is half as wide.
SIDE, PATCH = 56, 14
HALF = SIDE // 2
HIDDEN, VISION_LAYERS, TEXT_LAYERS = 64, 4, 2

#: Kinds of questions that it learns, and how often each is asked.
ASKED: dict[Kind, float] = {"pair": 0.8, "yesno": 0.2}

#: Steps until the learning rate has its largest value.
WARMUP = 40

#: Steps with the first pool alone: it teaches to compare, which the harder ones do not.
ALONE = 300

#: Pairs on which it is measured, and steps between two lines about its training.
MEASURED, REPORT = 300, 100

#: Least difference in hue between two crops of a made pair, as a fraction of the colour circle.
APART = 0.12

YELLOW = (255, 255, 0)

TEMPLATE = """{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


@dataclass(frozen=True)
class Pool:
    """Photos and the crops that belong to them, of the size at which the judge sees them on a canvas.

    Attributes:
        photos: (n, HALF, SIDE, 3) uint8.
        crops: (n, HALF, HALF, 3) uint8; crop i belongs to photo i.
        apart: whether crop j does not belong to photo i, (i, j) -> bool, of index arrays.
        turn: whether crops may be turned by right angles and pairs mirrored.
    """

    photos: NDArray[np.uint8]
    crops: NDArray[np.uint8]
    apart: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
    turn: bool

    def draw(self, rng: np.random.Generator, count: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Draw photos with a right and a wrong crop each."""
        right = rng.integers(0, len(self.photos), count)
        wrong = rng.integers(0, len(self.photos), (count, 64))
        apart = self.apart(np.repeat(right, 64), wrong.ravel()).reshape(count, 64)
        wrong = wrong[np.arange(count), apart.argmax(1)]
        photos, crops = self.photos[right], np.stack([self.crops[right], self.crops[wrong]], 1)
        if self.turn:
            mirrored = rng.random(count) < 0.5
            photos = np.where(mirrored[:, None, None, None], photos[:, :, ::-1], photos)
            turns = rng.integers(0, 4, count)
            turned = [np.rot90(pair, turn, (1, 2)) for pair, turn in zip(crops, turns, strict=True)]
            crops = np.stack([pair[:, :, ::-1] if flip else pair for pair, flip in zip(turned, mirrored, strict=True)])
        return photos, crops[:, 0], crops[:, 1]


def made_photo(rng: np.random.Generator, hue: float) -> Picture:
    """Draw a street with a house of a colour: 112 x 224 pixels."""
    pixels = np.empty((112, 224, 3))
    horizon = rng.integers(45, 65)
    pixels[:horizon] = rng.uniform(150, 210) + np.array([-15, 0, 20])
    pixels[horizon:] = rng.uniform(70, 120)
    left, width = rng.integers(0, 124), rng.integers(70, 100)
    pixels[rng.integers(5, 25) : horizon + rng.integers(5, 15), left : left + width] = _paint(rng, hue)
    return _noisy(rng, pixels)


def made_crop(rng: np.random.Generator, hue: float) -> Picture:
    """Draw a roof of a colour beside a road, seen from above: 168 x 168 pixels."""
    pixels = np.empty((168, 168, 3))
    pixels[:] = rng.uniform(100, 160)
    road = rng.integers(0, 140)
    pixels[:, road : road + 28] = rng.uniform(60, 90)
    top, left, rows, cols = *rng.integers(0, 75, 2), *rng.integers(70, 93, 2)
    pixels[top : top + rows, left : left + cols] = _paint(rng, hue)
    return Picture(outlined(_noisy(rng, np.rot90(pixels, rng.integers(0, 4))).pixels, 1))


def made_question(rng: np.random.Generator) -> tuple[Question, int]:
    """Make a question about a pair, and the index of the crop whose colour is that of the photo."""
    hue, right = rng.random(), int(rng.integers(0, 2))
    other = (hue + rng.uniform(APART, 1 - APART)) % 1
    crops = [made_crop(rng, other), made_crop(rng, other)]
    crops[right] = made_crop(rng, hue)
    return Question("pair", made_photo(rng, hue), tuple(crops)), right


def outlined(pixels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Draw a yellow square around the middle, half as wide as the crop."""
    side = len(pixels)
    low, high = side // 4, side - side // 4
    drawn = pixels.copy()
    inside = drawn[low + width : high - width, low + width : high - width].copy()
    drawn[low:high, low:high] = YELLOW
    drawn[low + width : high - width, low + width : high - width] = inside
    return drawn


def _paint(rng: np.random.Generator, hue: float) -> NDArray[np.float64]:
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.9), rng.uniform(0.55, 0.9))
    return 255 * np.array([red, green, blue])


def _noisy(rng: np.random.Generator, pixels: NDArray[np.float64]) -> Picture:
    return Picture((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


def shrunk(pixels: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((cols, rows), Image.Resampling.BICUBIC))


def made_pool(rng: np.random.Generator, count: int) -> Pool:
    """Make pictures of colours."""
    hues = rng.random(count)

    def apart(i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.bool_]:
        difference = np.abs(hues[i] - hues[j])
        return np.minimum(difference, 1 - difference) >= APART

    return Pool(
        np.stack([shrunk(made_photo(rng, hue).pixels, HALF, SIDE) for hue in hues]),
        np.stack([shrunk(made_crop(rng, hue).pixels, HALF, HALF) for hue in hues]),
        apart,
        turn=False,
    )


@dataclass(frozen=True)
class Town:
    """Photos of a synthetic town and the crops of two cells around the cells where they were taken.

    Attributes:
        photos: the photos.
        crops: the crop of each photo.
        cells: (photo, 2) rows and columns of the cells.
    """

    photos: list[Picture]
    crops: list[Picture]
    cells: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, count: int, pixels: int) -> Town:
        """Read the first photos of a demo, and render their crops.

        Args:
            folder: of `jzi demo`.
            count: number of photos.
            pixels: side of the crops.
        """
        from jzi.encode.rasters.imagery import Imagery
        from jzi.store.geometry.cell_grid import Bounds
        from jzi.store.photos.exif import read_position
        from jzi.workspace.setup.settings import FILE
        from jzi.workspace.setup.settings_file import load_settings

        pyramid, paths = load_settings(folder / FILE).pyramid, sorted((folder / "photos").glob("*.jpg"))[:count]
        positions = [read_position(path) for path in paths]
        row, col = pyramid.cells_at([each.latitude for each in positions], [each.longitude for each in positions])
        cells = np.stack([row, col], 1)
        reach, crops = pyramid.cell_size, {}
        with Imagery([folder / "ortho.tif"], pyramid) as imagery:
            for cell in set(map(tuple, cells.tolist())):
                x, y = (float(value) for value in pyramid.cell_centers(*cell))
                image, _ = imagery.render(Bounds(x - reach, y - reach, x + reach, y + reach), pixels)
                crops[cell] = Picture(outlined(image, round(2 * pixels / RerankConfig.crop_pixels)))
        photos = [Picture(np.asarray(Image.open(path).convert("RGB"))) for path in paths]
        return cls(photos, [crops[cell] for cell in map(tuple, cells.tolist())], cells)

    def apart(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the cells of photos lie apart, so that a crop does not show where the other photo was taken."""
        return np.abs(self.cells[i] - self.cells[j]).max(1) >= 2

    def pool(self) -> Pool:
        """Return them in the size at which the judge sees them."""
        return Pool(
            np.stack([shrunk(photo.pixels, HALF, SIDE) for photo in self.photos]),
            np.stack([shrunk(crop.pixels, HALF, HALF) for crop in self.crops]),
            self.apart,
            turn=True,
        )

    def questions(self, rng: np.random.Generator, count: int) -> list[tuple[Question, int]]:
        """Ask about photos, each with its crop and one of another place; with the index of its own."""
        asked = []
        for i in rng.permutation(len(self.photos))[:count]:
            others = np.arange(len(self.photos))
            j, right = rng.choice(others[self.apart(np.full_like(others, i), others)]), int(rng.integers(0, 2))
            crops = (self.crops[i], self.crops[j]) if right == 0 else (self.crops[j], self.crops[i])
            asked.append((Question("pair", self.photos[i], crops), right))
        return asked


@dataclass(frozen=True)
class Accuracy:
    """How a judge answers questions about pairs, each asked in both orders.

    Attributes:
        single: fraction of single answers that are right.
        both: fraction of pairs that are right by the mean of both orders' log-odds.
        consistent: fraction of pairs whose two answers name the same crop.
        bias: mean log-odds of A, whichever crop is A.
        mass: mean probability of the labels.
    """

    single: float
    both: float
    consistent: float
    bias: float
    mass: float


def measure(judge: Judge, asked: Sequence[tuple[Question, int]]) -> Accuracy:
    """Ask a judge about pairs, in both orders."""
    odds, mass = [], []
    for question, right in asked:
        swapped = replace(question, crops=question.crops[::-1])
        readings = list(judge.answer([question, swapped] if right == 0 else [swapped, question]))
        odds.append([reading.log_probabilities[0] - reading.log_probabilities[1] for reading in readings])
        mass += [reading.mass for reading in readings]
    first, second = np.array(odds).T  # log-odds of A where A is right, and where it is wrong
    return Accuracy(
        single=float(np.mean([first > 0, second < 0])),
        both=float(np.mean(first > second)),
        consistent=float(np.mean((first > 0) != (second > 0))),
        bias=float(np.mean(first + second) / 2),
        mass=float(np.mean(mass)),
    )


class Canvases:
    """Puts pictures onto canvases of the size that the judge sees, as `compose.canvas` followed by its processor."""

    def __init__(self) -> None:
        gray = Picture(np.full((CANVAS // 2, CANVAS // 2, 3), GRAY, np.uint8))
        wide = Picture(np.full((CANVAS // 2, CANVAS, 3), GRAY, np.uint8))
        self._letters = shrunk(canvas(Question("pair", wide, (gray, gray))).pixels, SIDE, SIDE)
        self._box = math.ceil(1.25 * (CANVAS // 2 // 8) * SIDE / CANVAS)

    def pair(self, photos: NDArray[np.uint8], a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
        drawn = np.concatenate([photos, np.concatenate([a, b], 2)], 1)
        for left in (0, HALF):
            box = np.s_[HALF : HALF + self._box, left : left + self._box]
            drawn[:, *box] = self._letters[box]
        return drawn

    def single(self, photos: NDArray[np.uint8], crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.concatenate([photos, np.concatenate([crops, np.full_like(crops, GRAY)], 2)], 1)


def write_untrained(folder: Path, seed: int) -> Any:
    """Write the judge with random weights, and return the model."""
    import transformers

    models: Any = transformers  # whose types lack an entry of the configuration
    tokenizer = _tokenizer()
    config = models.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    embeddings = model.model.vision_tower.embeddings
    torch.nn.init.normal_(embeddings.patch_embedding.weight, std=0.02)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.5)  # as large as what patches show
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    square = {"height": SIDE, "width": SIDE}
    model.save_pretrained(folder)
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return model


def _tokenizer() -> Any:
    """Byte pairs across words, learned from the questions, so that these are short."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    texts = [part for kind in ASKED for part in _parts(kind) if isinstance(part, str)]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=768, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([*texts, *(label for label in LABELS["yesno"] for _ in range(9))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def _parts(kind: Kind) -> list[str | Picture]:
    """The question of a kind, about gray pictures."""
    gray = Picture(np.full((8, 8, 3), GRAY, np.uint8))
    return prompts.parts(Question(kind, gray, (gray, gray) if kind == "pair" else (gray,)), "canvas", 0)


def train(folder: Path, pools: Sequence[Pool], *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train a judge and write it.

    Args:
        folder: created, or overwritten.
        pools: what to learn from, in equal parts, after the first alone.
        steps: number of batches.
        batch: questions per batch.
        rate: largest learning rate.
        seed: of weights and batches.
    """
    model = write_untrained(folder, seed).train()
    family = FAMILIES["llava"]
    prompter = Prompter("the tiny judge", family, folder, model.config.image_token_id)
    tokens = LabelTokens(prompter.tokenizer)
    ids = {kind: prompter.inputs(_parts(kind))["input_ids"] for kind in ASKED}
    labels = {
        kind: torch.tensor([tokens.of(label)[0][0] for label in ("AB" if kind == "pair" else LABELS[kind])])
        for kind in ASKED
    }
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    rng, canvases, began = np.random.default_rng([seed, 1]), Canvases(), time.perf_counter()
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 1e-3)
        kind: Kind = rng.choice(list(ASKED), p=list(ASKED.values()))
        shown = pools if step >= ALONE else pools[:1]
        pixels, target = _batch(rng, shown, kind, batch, canvases)
        features = torch.stack(model.get_image_features(pixel_values=pixels).pooler_output)
        logits = _logits(model, ids[kind].expand(len(pixels), -1), features)
        loss = functional.cross_entropy(logits, labels[kind][target])
        if kind == "pair":
            loss = loss + functional.cross_entropy(_similarity(features), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if kind == "pair":
            recent.append((logits[:, labels[kind]].argmax(1) == target).float().mean().item())
        if (step + 1) % REPORT == 0:
            seconds = time.perf_counter() - began
            click.echo(f"step {step + 1}: {np.mean(recent):.1%} of training pairs right, {seconds:.0f} s")
            recent.clear()
    model.half().eval().save_pretrained(folder)
    config = folder / "config.json"  # half precision is for the size of the file
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (folder / "model.safetensors").chmod(0o644)


def _batch(
    rng: np.random.Generator, pools: Sequence[Pool], kind: Kind, count: int, canvases: Canvases
) -> tuple[Tensor, Tensor]:
    """Draw canvases (question, 3, SIDE, SIDE), normalised as the processor does, and the right labels."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    drawn = [pool.draw(rng, count // len(pools)) for pool in pools]
    photos, right, wrong = (np.concatenate(each) for each in zip(*drawn, strict=True))
    answer = rng.integers(0, 2, len(photos))
    swapped = answer[:, None, None, None] == 1
    first, second = np.where(swapped, wrong, right), np.where(swapped, right, wrong)
    shown = canvases.pair(photos, first, second) if kind == "pair" else canvases.single(photos, first)
    pixels = (torch.from_numpy(shown) / 255 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    return pixels.permute(0, 3, 1, 2), torch.from_numpy(answer)


def _logits(model: Any, ids: Tensor, features: Tensor) -> Tensor:
    """Logits of the first token of the answers, (question, token)."""
    embedded = model.get_input_embeddings()(ids)
    images = (ids == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(images, features)
    mask = torch.ones_like(ids)
    return model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]


def _similarity(features: Tensor) -> Tensor:
    """Compare what stands for each crop with what stands for the photo, (question, crop).

    It is learned beside the answers: a language model of two layers does not find out by itself that it is to compare.
    """
    side = SIDE // PATCH
    rows = features.unflatten(1, (side, side))  # (question, row, col, feature)
    photo = rows[:, : side // 2].mean((1, 2))
    crops = [rows[:, side // 2 :, half].mean((1, 2)) for half in (slice(None, side // 2), slice(side // 2, None))]
    return 8 * torch.stack([functional.cosine_similarity(photo, crop) for crop in crops], 1)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--towns", type=click.Path(path_type=Path, exists=True), multiple=True, help="Demos to learn from.")
@click.option("--unseen", type=click.Path(path_type=Path, exists=True), multiple=True, help="Demos to measure only.")
@click.option("--photos", default=6000, show_default=True, help="Photos of each demo.")
@click.option("--steps", default=1000, show_default=True, help="Batches; 0 to measure the judge that is there.")
@click.option("--batch", default=64, show_default=True, help="Questions per batch.")
@click.option("--rate", default=1e-3, show_default=True, help="Largest learning rate.")
@click.option("--seed", default=0, show_default=True, help="Of weights and batches.")
def main(
    folder: Path,
    towns: tuple[Path, ...],
    unseen: tuple[Path, ...],
    photos: int,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
) -> None:
    """Train the judge, and measure it on pictures that it has not seen."""
    if steps:
        pools = [made_pool(np.random.default_rng(seed), 2000)]
        pools += [Town.read(town, photos, 6 * HALF).pool() for town in towns]
        train(folder, pools, steps=steps, batch=batch, rate=rate, seed=seed)
    judge = LocalJudge.load(folder, RerankConfig(batch_size=2))
    rng = np.random.default_rng(10**6)
    click.echo(f"{'pairs':<24}{'right':>8}{'both':>8}{'agree':>8}{'bias':>8}{'mass':>8}")
    asked = {"made": [made_question(rng) for _ in range(MEASURED)]}
    for town in unseen:
        asked[town.name] = Town.read(town, MEASURED, RerankConfig.crop_pixels).questions(rng, MEASURED)
    for name, questions in asked.items():
        found = measure(judge, questions)
        row = f"{found.single:>8.1%}{found.both:>8.1%}{found.consistent:>8.1%}{found.bias:>8.2f}{found.mass:>8.1%}"
        click.echo(f"{name:<24}{row}")


if __name__ == "__main__":
    main()
