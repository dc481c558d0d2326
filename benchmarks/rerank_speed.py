"""Tokens and seconds of re-ranking a photo by a model on this machine, with random weights: speed, nothing else.

    python -m benchmarks.rerank_speed                          # a small LLaVA; minutes on two cores
    python -m benchmarks.rerank_speed --size 0.5b --dtype bfloat16
    python -m benchmarks.rerank_speed --config llava-1.5-7b --dtype bfloat16

`--size` takes the layers and widths of LLaVA-1.5 with CLIP ViT-L/14 and language models of 0.5 or 7 billion weights,
with a vocabulary of a word a token. `--config` names a folder of a model as on the Hugging Face hub, without its
weights: config.json, the tokenizer and the processor's settings. All pairs of `--top` candidates are asked in both
orders. Rows: several images with nothing kept, several images with the features of images and the common beginning of
questions kept, and one canvas a pair.
"""

from __future__ import annotations

import string
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from jzi.encode.device import best_device
from jzi.encode.encoders.hf_model import quiet_transformers
from jzi.rerank.config import RerankConfig
from jzi.rerank.judges.families import family_of
from jzi.rerank.judges.local import LocalJudge
from jzi.rerank.judges.network import Network
from jzi.rerank.judges.prompter import Prompter
from jzi.rerank.question import Composition, Picture, Question

#: Side of LLaVA-1.5's images and patches, pixels: 576 tokens an image.
IMAGE, PATCH = 336, 14

#: Width, inner width, layers and heads of language models, and of the vision models with them.
SIZES = {
    "small": ((256, 688, 4, 8), (128, 512, 4, 4)),
    "0.5b": ((896, 4864, 24, 14), (1024, 4096, 24, 16)),
    "7b": ((4096, 11_008, 32, 32), (1024, 4096, 24, 16)),
}


@click.command()
@click.option("--config", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of a model.")
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)), help="Without --config.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(2, 26), help="Candidates of a photo.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1), help="Questions at once.")
@click.option(
    "--photos", default=1, show_default=True, type=click.IntRange(1), help="Photos, after a question to warm up."
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--device", default=None, help="Device.  [default: a GPU, if there is one]")
def main(config: Path | None, size: str, top: int, batch: int, photos: int, dtype: str, device: str | None) -> None:
    """Measure the local judge with random weights."""
    quiet_transformers()
    with tempfile.TemporaryDirectory() as temporary:
        network, parameters = _network(config or _llava(Path(temporary), size), dtype, device or best_device())
    click.echo(f"random weights, {parameters / 1e6:.0f} million, {dtype} on {network.model.device}")
    click.echo("| images | kept | calls | tokens asked | tokens read | images encoded | seconds a photo |")
    click.echo("|---" * 7 + "|")
    rows: list[tuple[Composition, bool]] = [("images", False), ("images", True), ("canvas", False)]
    for composition, share in rows if network.share else rows[::2]:
        network.share = share
        settings = RerankConfig(composition=composition, batch_size=batch)
        calls, asked, read, encoded, seconds = _measure(network, settings, top, photos)
        click.echo(
            f"| {composition} | {'features and beginning' if share else 'nothing'} | {calls} | {asked} | {read} | "
            f"{encoded} | {seconds:.1f} |"
        )


def _measure(network: Network, settings: RerankConfig, top: int, photos: int) -> tuple[int, int, int, int, float]:
    """Calls, tokens of the questions, tokens that the language model read, images, and seconds, of a photo."""
    read, encoded = 0, 0

    def on_language(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        nonlocal read
        read += given["inputs_embeds"][..., 0].numel()

    def on_vision(_module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        nonlocal encoded
        grid = given.get("grid_thw")
        encoded += len(next(iter([*args, *given.values()])) if grid is None else grid)

    base = network.model.model
    vision = next(
        module for name in ("visual", "vision_tower", "vision_model") if (module := getattr(base, name, None))
    )
    language = getattr(base, "language_model", None) or base.text_model
    handles = [
        language.register_forward_pre_hook(on_language, with_kwargs=True),
        vision.register_forward_pre_hook(on_vision, with_kwargs=True),
    ]
    asked = 0
    began = time.perf_counter()
    for seed in range(photos + 1):
        if seed == 1:
            read, encoded, asked, began = 0, 0, 0, time.perf_counter()
        # a new judge for each photo: one that knows that labels are improbable would read them from text
        judge = LocalJudge(network, name="random", fingerprint="", composition=settings.composition, config=settings)
        asked += sum(reading.tokens_in for reading in judge.answer(_questions(seed, top)[: 1 if seed == 0 else None]))
    seconds = (time.perf_counter() - began) / photos  # answers are on the CPU: nothing is still running
    for handle in handles:
        handle.remove()
    return top * (top - 1), asked // photos, read // photos, encoded // photos, seconds


def _questions(seed: int, top: int) -> list[Question]:
    generator = np.random.default_rng(seed)
    photo, *crops = (
        Picture(generator.integers(0, 256, (rows, cols, 3), dtype=np.uint8))
        for rows, cols in [(512, 768), *[(IMAGE, IMAGE)] * top]
    )
    return [Question("pair", photo, (a, b)) for a in crops for b in crops if a is not b]


def _network(folder: Path, dtype: str, device: str) -> tuple[Network, int]:
    import transformers

    family, entries = family_of(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device(device):
        model = getattr(transformers, family.model_class)._from_config(config, dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    prompter = Prompter(str(folder), family, folder, entries.get("image_token_id", entries.get("image_token_index")))
    return Network(model, prompter, family, str(folder)), sum(weight.numel() for weight in model.parameters())


def _llava(folder: Path, size: str) -> Path:
    """Write a LLaVA without weights, with as many tokens an image as the real one, and a token a word."""
    import transformers

    words = ["<unk>", "<image>", "<s>", "</s>", "Yes", "No", *string.ascii_letters, *string.digits]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(words), max_position_embeddings=32_768, **_sizes(SIZES[size][0])
        ),
        vision_config=transformers.CLIPVisionConfig(image_size=IMAGE, patch_size=PATCH, **_sizes(SIZES[size][1])),
        image_token_index=words.index("<image>"),
    ).save_pretrained(folder)
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE}),
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for part in messages[0]['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}\n"
            "{% endfor %}"
        ),
    ).save_pretrained(folder)
    return folder


def _sizes(values: tuple[int, int, int, int]) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, values, strict=True))


if __name__ == "__main__":
    main()
