"""`jzi demo`: render a synthetic town and run on it the commands that a user runs on an area of their own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import click
from tqdm import tqdm

from jzi.errors import ConfigError
from jzi.store.plain import share_text

#: Input size of the demo's encoder, pixels: six patches a side, small enough for laptops.
IMAGE_SIZE = 84

#: The fine-tuned model that the package ships, and the town that it was trained on (README.md in this folder).
FINETUNED = Path(__file__).parent / "finetuned"
FINETUNED_ON = (0, 1280.0)  # seed, metres

#: A refiner of that town and its model, for --refine.
REFINER = Path(__file__).parent / "refiner"

#: The tiny vision-language model that the package ships, for --rerank.
JUDGE = Path(__file__).parent / "judge"

#: Settings of stage two, written into jzi.toml: from the decoder that was trained with the encoder, and from scratch.
FROM_FINETUNED = (
    "--set train.init=finetuned --set train.batch_size=64 --set train.learning_rate=3e-5 "
    "--set heads.init=finetuned --set heads.epochs=2 --set heads.learning_rate=1e-4"
)
FROM_SCRATCH = "--set decoder.layers=3 --set decoder.heads=4 --set train.batch_size=64 --set train.learning_rate=1e-3"


def run_demo(
    folder: Path,
    run: Callable[[str], object],
    *,
    photos: int = 4096,
    epochs: int | None = None,
    seed: int = 0,
    size_m: float = 1280.0,
    encoder: str = "trained",
    only_town: bool = False,
) -> None:
    """Render the town into `folder`, encode, train, evaluate, and locate and draw one held-out photo.

    Existing files are reused; an interrupted run is resumed.

    Args:
        folder: output folder.
        run: runs a command of jzi, given as typed after `jzi`; raises JziError if it fails.
        photos: number of street photos.
        epochs: of the decoder; by default 3 in the town of the shipped model, where training continues from its
            decoder, and 20 from scratch elsewhere.
        seed: of the town.
        size_m: side of the town, metres.
        encoder: "trained" for the tiny one that jzi ships, "random" for the same before training, or a Hugging Face id
            or folder.
        only_town: stop after the town, the encoder and jzi.toml have been written.

    Raises:
        JziError: the folder holds another demo, or a command fails.
    """
    from jzi.synth.town import write_town

    click.echo(f"Rendering a synthetic town (seed {seed}) with {photos} street photos into {folder}/ ...")
    with tqdm(total=photos, unit="photo", desc="town") as bar:
        write_town(folder, seed, photos, size_m=size_m, progress=bar.update)
    same_town = encoder == "trained" and (seed, size_m) == FINETUNED_ON
    with contextlib.chdir(folder):
        name = {"trained": "finetuned/encoder", "random": "random-encoder"}.get(encoder, encoder)
        if encoder == "trained":
            _copy_folder(FINETUNED, Path("finetuned"))
        if encoder == "random" and not Path(name).exists():
            _make_folder(Path(name), _write_random_encoder)
        train = "train-decoder"
        if Path("jzi.toml").exists():
            _check_encoder(name, folder)
            train += f" --set train.epochs={epochs}" if epochs else ""
        else:
            options = f"--split-by photo --encoder {name} --image-size {IMAGE_SIZE}"
            settings = FROM_FINETUNED if same_town else FROM_SCRATCH
            settings += f" --set train.epochs={epochs or (3 if same_town else 20)}"
            run(f"init --map ortho.tif --queries photos {options} {settings}")
        if only_town:
            return
        run("encode-map --cells")
        run("encode-queries")
        run(train)
        run("evaluate --estimates --radii 20,50,100")
        _copy_folder(JUDGE, Path("judge"))
        photo = Path("photos") / _held_out_photo()
        run(f"locate {photo} --picture zoom.png --map zoom.html")
        if same_town:  # the refiner's weights beside the experts were fitted there
            _copy_folder(REFINER, Path("refiner"))
            run("encode-map --detail --refiner refiner")
            run(f"locate {photo} --refine refiner --picture metres.png --map metres.html")
    encoder_note = {
        "trained": _training_note(same_town),
        "random": "Its encoder has random weights and was never trained.",
    }
    chance = ", ".join(f"{share_text(3.1416 * radius**2 / size_m**2)} within {radius} m" for radius in (20, 50, 100))
    click.echo(
        "\nThis town is synthetic: its figures show that the program works, not how well it does in a real city. "
        + encoder_note.get(encoder, "")
        + " Photos are split one by one, as they were to train the shipped encoder: a held-out photo may lie beside "
        "training photos."
        + f" Guessing reaches about {chance}."
        + f"\nOne photo, its zoom and the answer: {folder / 'zoom.png'}, and on a map: {folder / 'zoom.html'}"
        + (_metres_note(folder) if same_town else "")
        + f"\nIts candidates, compared by a toy of a vision-language model: cd {folder}; jzi locate {photo} "
        "--rerank judge --map compared.html"
    )


def _metres_note(folder: Path) -> str:
    return (
        f"\nThe same to metres, by a refiner that is given the photo's heading: {folder / 'metres.png'}, and on a map: "
        f"{folder / 'metres.html'}"
    )


def _training_note(same_town: bool) -> str:
    if same_town:
        return (
            "Its encoder was fine-tuned on training photos of this town, not on the held-out ones (the paper's "
            "same-area protocol)."
        )
    return "Its encoder was fine-tuned on another synthetic town and has never seen this one."


def _check_encoder(name: str, folder: Path) -> None:
    from jzi.workspace.setup.settings_file import load_settings

    existing = load_settings(Path("jzi.toml")).encoder.name
    if Path(existing).name != Path(name).name:
        raise ConfigError(f"{folder} holds a demo with the encoder {existing}, not {name}: choose another folder")


def _copy_folder(source: Path, folder: Path) -> None:
    if not folder.exists():
        _make_folder(folder, lambda path: shutil.copytree(source, path))


def _make_folder(folder: Path, make: Callable[[Path], object]) -> None:
    """Write a folder that is complete or absent."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(folder)


def _write_random_encoder(folder: Path) -> None:
    """Write a DINOv2 of four blocks and 128 features with fixed random weights, the start of the shipped one."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from jzi.encode.encoders.hf_model import quiet_transformers

    quiet_transformers()
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=2, image_size=IMAGE_SIZE, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)


def _held_out_photo() -> str:
    """The first photo of the test split."""
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.workspace.setup.settings_file import load_settings

    frame = FeatureCache.open(load_settings(Path("jzi.toml")).cache_path).queries.encoded()
    held_out = frame[frame["split"] == "test"]
    return str(held_out["path"].iloc[0])
