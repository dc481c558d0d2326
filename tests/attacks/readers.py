"""Hostile files for the readers of files from strangers: those of `tests.hostile`, and damaged ones of other kinds."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from jzi.ablate.variants import read_variants
from jzi.curate.folder import DatasetFolder, DatasetInfo
from jzi.datasets import cvusa, kitti
from jzi.datasets.matlab import read_matlab
from jzi.datasets.orientations import read_orientations
from jzi.datasets.tiled_layout import TiledLayout
from jzi.decode.import_checkpoint import import_checkpoint
from jzi.encode.encoders.hf_model import load_model
from jzi.encode.encoders.towers_config import TowersConfig, read_towers_config
from jzi.encode.photo.photo_view import read_view
from jzi.errors import JziError
from jzi.refine.networks.files import load_refiner
from jzi.rerank.fuse import Weights
from jzi.rerank.judges.replies import parse_reply
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.judgments import Judgments, judgment_key
from jzi.rerank.question import Picture, Question
from jzi.rerank.weights_file import WeightsFile, read_weights, write_weights
from jzi.retrieve.import_statewide import import_statewide
from jzi.store.geometry.geojson import read_polygons
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import Region, RegionCells
from jzi.store.photos.photo_table import read_photo_table
from jzi.store.plain import plain
from jzi.tests import hostile, pair_trees
from jzi.tests.properties import test_hostile as properties
from jzi.workspace.pairs import load_pairs
from jzi.workspace.setup.settings_file import load_area
from jzi.workspace.stages.rerank_cases import probabilities, read_candidates

Files = dict[str, bytes]


class Attack(NamedTuple):
    """How files of a kind are made, and how they are read: errors other than `JziError` are faults."""

    make: Callable[[int], hostile.Hostile]
    read: Callable[[Path], object]


@cache
def _written(write: Callable[[Path], object]) -> Files:
    """The files that a function writes to a folder."""
    with TemporaryDirectory() as folder:
        write(Path(folder))
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def _damaged(write: Callable[[Path], object], name: str, suffixes: tuple[str, ...] = ("",)) -> Callable:
    """Files as a function writes them, one of which, with one of some suffixes, is damaged or edited."""

    def make(seed: int) -> hostile.Hostile:
        rng, files = random.Random(seed), dict(_written(write))
        target = rng.choice(sorted(each for each in files if each.endswith(suffixes)))
        if target.endswith(".json") and rng.random() < 0.7:
            files[target] = hostile.edit_json(files[target], rng)
        else:
            files[target] = hostile.damage(files[target], rng)
        return hostile.Hostile(f"{name}: {target}", seed, "", files)

    return make


def _kinds(make: Callable[[str, int], hostile.Hostile], kinds: dict) -> Callable[[int], hostile.Hostile]:
    return lambda seed: make(random.Random(seed).choice([*kinds]), seed)


def _each(*reads: Callable[[], object]) -> None:
    """Read in several ways, and raise the first refusal at the end."""
    refusals = []
    for read in reads:
        try:
            read()
        except JziError as error:
            refusals.append(error)
    for refusal in refusals:
        raise refusal


# Photos, tables, regions


def _xmp_photo(seed: int) -> hostile.Hostile:
    """A JPEG with damaged XMP of a panorama and a heading."""
    rng = random.Random(seed)
    fields = {
        "GPano:ProjectionType": "equirectangular",
        "GPano:PoseHeadingDegrees": "12.5",
        "FullPanoWidthPixels": "96",
    }
    values = ["", "nan", "1e400", "-1", "9" * 400, "<", "&e;", "\0", "equirectangular", "360"]
    text = "".join(f' {name}="{rng.choice([value, *values])}"' for name, value in fields.items())
    xmp = f"<x:xmpmeta><rdf:Description{text}{' ' * rng.choice([0, 60_000])}/></x:xmpmeta>".encode()
    photo = hostile._jpeg()
    part = hostile.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + hostile.damage(xmp, rng)[:65_000])
    return hostile.Hostile("xmp", seed, "a.jpg", {"a.jpg": photo[:2] + part * rng.choice([1, 3]) + photo[2:]})


def _read_table(path: Path) -> None:
    read_photo_table(path).inside(Pyramid.around(48.2, 16.3, 1000.0, levels=2))


def _read_region(path: Path) -> None:
    read_polygons(path)
    region = Region.read(path)
    RegionCells.of(region, 30.0 if region.geometry.area < 0.1 else 3000.0)


def _write_settings(folder: Path) -> None:
    (folder / "pairs.toml").write_text(
        '[pairs]\ndataset = "vigor"\nfolder = "VIGOR"\narea = "same"\n[refiner]\nepochs = 3\n'
    )
    (folder / "variants.toml").write_text(
        '[settings]\ntrain.epochs = 3\n[variants."two layers"]\ndecoder.layers = 2\n[variants.plain]\ntrain.views = 0\n'
    )


def _read_settings(folder: Path) -> None:
    _each(lambda: load_pairs(folder / "pairs.toml"), lambda: read_variants(folder / "variants.toml"))


# Judgments and lists


def _questions() -> list[Question]:
    rng = np.random.default_rng(0)
    pictures = [Picture(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)) for _ in range(7)]
    pairs = [Question("pair", pictures[0], (pictures[n], pictures[n + 1])) for n in range(1, 6)]
    return [*pairs, Question("list", pictures[0], tuple(pictures[1:5]))]


def _write_judgments(folder: Path) -> None:
    judge = ScriptedJudge({})
    with Judgments.open(folder / "judgments.sqlite") as judgments:
        for question in _questions():
            judgments.put(judge, question, next(judge.answer([question])))
    connection = sqlite3.connect(folder / "judgments.sqlite")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


def _read_judgments(folder: Path) -> None:
    judge = ScriptedJudge({})
    with Judgments.open(folder / "judgments.sqlite", create=False) as judgments:
        _each(
            lambda: list(judgments.rows()),
            judgments.summary,
            lambda: judgments.get([judgment_key(question, judge.fingerprint) for question in _questions()]),
            lambda: judgments.export(folder / "out.csv"),
            lambda: judgments.put(judge, _questions()[0], next(judge.answer(_questions()[:1]))),
        )


def _candidates(seed: int) -> hostile.Hostile:
    rng = random.Random(seed)
    cells = [cell for cell in hostile._CELLS if len(cell) < 9000] + ["1_2", "3_4", "0", "1", "2"]
    header = rng.sample(["photo", "rank", "id", "score", "note"], k=rng.choice([3, 5, 5, 5]))
    good = {"photo": "a.jpg", "id": "1_2", "score": "0.5", "note": "x"}
    rows = [header] + [
        [good.get(name, str(row)) if rng.random() < 0.8 else rng.choice(cells) for name in header] for row in range(9)
    ]
    text = "\n".join(",".join(f'"{cell}"' if rng.random() < 0.3 else cell for cell in row) for row in rows)
    data = text.encode(rng.choice(["utf-8", "utf-16", "latin-1"]), "replace")
    return hostile.Hostile("candidates", seed, "list.csv", {"list.csv": hostile.damage(data, rng)})


def _read_candidates(path: Path) -> None:
    for listed in read_candidates(path).photos.values():
        assert abs(probabilities(listed).sum() - 1) < 1e-6


def _write_weights(folder: Path) -> None:
    text = "x" * 16
    weights = WeightsFile(
        judge=text, prompts=text, method=text, orders="both", front=text, pictures=text, weights=Weights(1.0, 0.5)
    )
    write_weights(folder / "rerank.json", weights)


def _reply(seed: int) -> hostile.Hostile:
    rng = random.Random(seed)
    logs = [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -2.5}]}]
    choice = {"message": {"content": "A", "refusal": None}, "finish_reason": "stop", "logprobs": {"content": logs}}
    data = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}).encode()
    for _ in range(rng.choice([1, 3])):
        data = hostile.edit_json(data, rng)
    data = hostile.damage(data, rng) if rng.random() < 0.3 else data
    return hostile.Hostile("reply", seed, "reply.json", {"reply.json": data})


def _read_reply(path: Path) -> None:
    with contextlib.suppress(ValueError):  # as documented: the caller makes an abstention of it
        parse_reply(path.read_bytes())


# Data sets


def _write_lists(folder: Path) -> None:
    pair_trees.write_cvact(folder / "cvact")
    pair_trees.write_cvusa(folder / "cvusa")
    pair_trees.write_kitti(folder / "kitti")
    (folder / "list.txt").write_text("a.jpg 12.5\nb.jpg, 350\n")
    array = io.BytesIO()
    np.save(array, np.array([1.0, 2.0]))
    (folder / "list.npy").write_bytes(array.getvalue())
    (folder / "layout.yaml").write_text(
        "path: '{zoom}/{x}/{y}.jpg'\ncrs: EPSG:32633\ntile_shape_px: [256, 256]\ntile_shape_crs: [100, 100]\n"
        "origin_crs: [600000, 5340000]\ntile_axes: [east, south]\nmin_zoom: 0\nmax_zoom: 0\n"
    )
    info = DatasetInfo.model_construct()
    with contextlib.suppress(Exception):
        (folder / "dataset.json").write_text(info.model_dump_json())
    (folder / "photos.csv").write_text("id,path,latitude,longitude\na,a.jpg,48,16\n")
    (folder / "rejected.csv").write_text("id,filter,reason\nb,time,late\n")


def _read_lists(folder: Path) -> None:
    _each(
        lambda: read_matlab(folder / "cvact" / "ACT_data.mat", ["panoIds", "utm", "trainSet", "valSet"]),
        lambda: cvusa.read(folder / "cvusa", "test"),
        lambda: kitti.read(folder / "kitti", "test1"),
        lambda: read_orientations(folder / "list.txt", ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        lambda: read_orientations(folder / "list.npy", ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        lambda: TiledLayout.read(folder / "layout.yaml").tiles(),
        lambda: DatasetFolder.read(folder),
    )


# Weights


def _write_encoder(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)


def _write_towers(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"jzi_towers": 1, **plain(TowersConfig())}))


def _write_refiner(folder: Path) -> None:
    from jzi.refine.networks.files import save_refiner
    from jzi.tests import test_refine_files as refiners

    save_refiner(folder, refiners.network("cached"), refiners.info_of("cached"))


def _write_statewide(folder: Path) -> None:
    from jzi.tests.test_import_statewide import random_weights

    weights = {name: tensor.half() for name, tensor in random_weights().items()}
    (folder / "last.safetensors").write_bytes(save(weights))


def _import(path: Path) -> None:
    try:
        import_checkpoint(path, path.parent / "model", properties.AREA, encoder=str(path.parent / "encoder"))
    finally:
        assert not (path.parent / "model").exists()


def _import_statewide(folder: Path) -> None:
    torch.manual_seed(0)
    import_statewide(folder / "last.safetensors", folder / "model", image_size=64)


ATTACKS: dict[str, Attack] = {
    "photos": Attack(_kinds(hostile.photo, hostile.PHOTO_KINDS), properties._read_photo),
    "photos with XMP": Attack(_xmp_photo, read_view),
    "photo tables": Attack(_kinds(hostile.table, hostile.TABLE_KINDS), _read_table),
    "rasters": Attack(_kinds(hostile.raster, hostile.RASTER_KINDS), properties._read_raster),
    "settings": Attack(lambda seed: hostile.file("settings", seed), load_area),
    "other settings": Attack(_damaged(_write_settings, "settings"), _read_settings),
    "regions": Attack(lambda seed: hostile.file("region", seed), _read_region),
    "judgments": Attack(_damaged(_write_judgments, "judgments"), _read_judgments),
    "lists of candidates": Attack(_candidates, _read_candidates),
    "rerank.json": Attack(_damaged(_write_weights, "weights"), lambda folder: read_weights(folder / "rerank.json")),
    "replies of endpoints": Attack(_reply, _read_reply),
    "lists of data sets": Attack(
        _damaged(_write_lists, "data", (".mat", ".csv", ".txt", ".npy", "l", "n")), _read_lists
    ),
    "encoder folders": Attack(_damaged(_write_encoder, "encoder"), load_model),
    "towers": Attack(_damaged(_write_towers, "towers"), read_towers_config),
    "refiner folders": Attack(_damaged(_write_refiner, "refiner"), load_refiner),
    "checkpoints": Attack(lambda seed: hostile.file("checkpoint", seed), _import),
    "checkpoints of states": Attack(_damaged(_write_statewide, "statewide"), _import_statewide),
}
