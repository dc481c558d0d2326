"""`jzi demo`: makes a town, then runs on it the very commands that a user runs on an area of their own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import click
from tqdm import tqdm

from jzi.errors import ConfigError

#: 84 pixels of a tile are what the demo's encoder sees: six patches a side, for laptops.
IMAGE_SIZE = 84

#: What fine-tuning made, as it comes with the package, and the town whose training photos it saw (README.md here).
FINETUNED = Path(__file__).parent / "finetuned"
FINETUNED_ON = (0, 1280.0)  # seed, metres


#: Stage two from the decoder that was trained with the encoder, and from scratch.
GO_ON = "--set train.init=finetuned --set train.batch_size=64 --set train.learning_rate=3e-5"
AFRESH = "--set decoder.layers=3 --set decoder.heads=4 --set train.batch_size=64 --set train.learning_rate=1e-3"


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
    """Make the town in `folder`, encode, train, evaluate, locate one held-out photo and draw it.

    What a folder holds already is reused; a run that was interrupted goes on.

    Args:
        folder: where everything goes.
        run: runs a command of jzi, given as a user would type it after `jzi`; raises JziError where that fails.
        photos: how many street photos to render.
        epochs: of the decoder's training; by default 3 where it goes on from the trained one, which it does in the
            town of that, and 20 from scratch.
        seed: which town.
        size_m: side of the town, metres.
        encoder: "trained" is the tiny one that comes with jzi, "random" the one that it began as; else a Hugging Face
            id or a folder.
        only_town: stop when there are the town, the encoder and a jzi.toml.

    Raises:
        JziError: the folder holds another demo, or a command fails.
    """
    from jzi.synth.town import write_town

    click.echo(f"Making a town (it is made up, from seed {seed}) with {photos} street photos in {folder}/ ...")
    with tqdm(total=photos, unit="photo", desc="town") as bar:
        write_town(folder, seed, photos, size_m=size_m, progress=bar.update)
    at_home = encoder == "trained" and (seed, size_m) == FINETUNED_ON  # where the trained decoder knows its way
    epochs = epochs or (3 if at_home else 20)
    with contextlib.chdir(folder):
        name = {"trained": "finetuned/encoder", "random": "random-encoder"}.get(encoder, encoder)
        if encoder == "trained" and not Path("finetuned").exists():
            _make_folder(Path("finetuned"), lambda path: shutil.copytree(FINETUNED, path))
        if encoder == "random" and not Path(name).exists():
            _make_folder(Path(name), _write_random_encoder)
        if Path("jzi.toml").exists():
            _check_encoder(name, folder)
        else:
            run(f"init --map ortho.tif --queries photos --encoder {name} --image-size {IMAGE_SIZE}")
        if only_town:
            return
        run("encode-map")
        run("encode-queries")
        how = GO_ON if at_home else AFRESH
        run(f"train-decoder --set train.epochs={epochs} {how}")
        run("evaluate --estimates --radii 20,50,100")
        photo = Path("photos") / _held_out_photo()
        run(f"locate {photo} --picture zoom.png --map zoom.html")
    told = {
        "trained": _trained_on(at_home),
        "random": "Its encoder has random weights and was never trained.",
    }
    chance = ", ".join(f"{3.1416 * radius**2 / size_m**2:.1%} within {radius} m" for radius in (20, 50, 100))
    click.echo(
        "\nThis town is made: its figures say that the program works, not how well it does in a real city. "
        + told.get(encoder, "")
        + f" Guessing would reach about {chance}."
        + f"\nOne photo, its zoom and the answer: {folder / 'zoom.png'}, and on a map: {folder / 'zoom.html'}"
    )


def _trained_on(this_town: bool) -> str:
    if this_town:
        return (
            "Its encoder was fine-tuned on photos of this very town, never on those that are held out (the paper's "
            "same-area protocol)."
        )
    return "Its encoder was fine-tuned on another made town, and has never seen this one."


def _check_encoder(name: str, folder: Path) -> None:
    from jzi.workspace.settings import load_settings

    found = load_settings(Path("jzi.toml")).encoder.name
    if Path(found).name != Path(name).name:
        raise ConfigError(f"{folder} holds a demo with the encoder {found}, not {name}; choose another folder")


def _make_folder(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder that is complete or absent."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(folder)


def _write_random_encoder(folder: Path) -> None:
    """A DINOv2 of four blocks and 128 features; the same random weights every time. The trained one began as it."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from jzi.encode.encoder import quiet_transformers

    quiet_transformers()
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=2, image_size=IMAGE_SIZE, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)


def _held_out_photo() -> str:
    """The first photo of the test split."""
    from jzi.store.cache import FeatureCache
    from jzi.workspace.settings import load_settings

    frame = FeatureCache.open(load_settings(Path("jzi.toml")).cache_path).queries.encoded()
    held_out = frame[frame["split"] == "test"]
    return str(held_out["path"].iloc[0])
