"""Damage to the files of caches and model folders: noticed in a sentence, or without effect on any answer."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jzi.tests import hostile
from jzi.tests.attacks.scene import (
    FINETUNE,
    RETRIEVER,
    TRAIN,
    add_judge,
    contents,
    differences,
    encode,
    fault_of,
    make_town,
    must,
    run,
    train,
)

#: Commands that fill a cache again after `cache verify --repair`.
REFILL = ("encode-map --tokens --cells --detail", "encode-queries --tokens --views 2")

TRAIN_ALL = f"{TRAIN} --experts zoom,cells,levels,vpr"
LOCATE = "locate photos/day0/000.jpg --json"
OTHER = "--set encoder.name=finetuned/encoder --set cache.path=finetuned.zarr"


class Target(NamedTuple):
    """A folder to damage, and the commands that read it."""

    folder: str
    commands: tuple[str, ...]
    left_out: tuple[str, ...] = ()


TARGETS = (
    Target("features.zarr", ("cache verify features.zarr", "evaluate --json")),
    Target("model", (LOCATE, f"{LOCATE} --experts zoom,cells,levels,vpr"), ("train", "refiner")),
    Target("model/train", (f"{TRAIN_ALL} --json",)),
    Target("model/refiner", (f"{LOCATE} --refine",), ("train",)),
    Target(
        "retriever",
        (
            f"{LOCATE} --retriever retriever",
            f"{LOCATE} --retriever retriever --approximate",
            "cache verify retriever/index.zarr",
        ),
        ("train",),
    ),
    Target("finetuned", (f"encode-map {OTHER} --json",), ("train",)),
    Target("encoder", ("encode-queries --tokens --views 2 --json",)),
    Target("judge", (f"{LOCATE} --rerank judge",)),
    Target("rerank", (f"{LOCATE} --rerank judge",)),
)  # fmt: skip


class Outcome(NamedTuple):
    """What became of a damaged file: "refused", "noticed" (a warning), "unchanged", or a fault."""

    target: str
    file: str
    damage: str
    outcome: str
    repaired: bool


def prepare(folder: Path) -> Path:
    """The town with a full cache and all kinds of models."""
    make_town(folder)
    encode(folder)
    train(folder)
    must(FINETUNE, folder)
    must(f"encode-map {OTHER}", folder)
    must(RETRIEVER, folder)
    must("index --hnsw", folder)
    add_judge(folder)
    must(f"{LOCATE} --rerank judge", folder)
    return folder


def damage(data: bytes, name: str, rng: random.Random) -> tuple[str, bytes | None]:
    """Flip a bit, truncate, change bytes, change a value of JSON, or remove the file."""
    how = rng.choice(["flip", "flip", "flip", "truncate", "bytes", "edit", "edit", "remove"])
    if how == "remove":
        return how, None
    if how == "edit" and name.endswith("json"):
        return how, hostile.edit_json(data, rng)
    if how == "truncate" and data:
        return how, data[: rng.randrange(len(data))]
    changed = data
    while changed == data and data:
        changed = hostile.flip(data, rng) if how == "flip" else hostile.damage(data, rng)
    return how, changed


def files_by_kind(folder: Path, left_out: tuple[str, ...]) -> list[list[Path]]:
    """Files whose paths differ in numbers only are of a kind, and drawn as one."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.startswith(".") and name.partition("/")[0] not in left_out:
            kind = re.sub(r"c/[\d/]+$", "c", name)
            kinds.setdefault(re.sub(r"[0-9a-f]{32,}", "*", kind), []).append(path)
    return [*kinds.values()]


def read_everything(path: Path) -> dict[str, bytes]:
    """Every array of a cache as jzi reads it, through its checks; raises its errors."""
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.geometry.pyramid import TileKey

    cache = FeatureCache.open(path)
    features, frame = cache.read_map(cells=True), cache.queries.encoded()
    arrays = [*features.embedding, *features.status, features.cells]
    arrays += [cache.patch_tokens.read(TileKey(level, 0, 0)) for level in range(cache.pyramid.levels)]
    arrays += [cache.queries.embedding(frame.index, view) for view in range(3)]
    side = cache.detail.status().shape
    tiles = [(row, col) for row in range(side[0]) for col in range(side[1])]
    arrays += [cache.detail.status(), *cache.detail.read_many(tiles), cache.detail.projection.basis]
    photos = cache.queries.tokens
    arrays += [photos.status(), photos.read(frame.index), photos.projection.scale]
    facts = [cache.pyramid, cache.encoder, cache.imagery, cache.cells.footprint, cache.queries.augmentation]
    texts = [*map(repr, facts), frame.to_csv()]
    return {str(number): np.asarray(array).tobytes() for number, array in enumerate(arrays)} | {
        f"fact {number}": text.encode() for number, text in enumerate(texts)
    }


def _answers(target: Target, town: Path) -> tuple[list[str], list[str], list[str], bool]:
    """Outputs, notes and faults of the commands, and whether one refused."""
    from jzi.errors import JziError

    outputs, notes, faults, refused = [], [], [], False
    for command in target.commands:
        ran = run(command, town)
        if fault := fault_of(ran):
            faults.append(f"{fault}: jzi {command}: {ran.errors[-1500:]}")
        refused |= ran.code != 0
        outputs.append(re.sub(r'"seconds": [^,}]*', "", ran.output) if ran.code == 0 else "")
        notes.append(re.sub(r"[\d.]+ s\b", "", ran.errors))
    if target.folder == "features.zarr":
        sound = not refused
        try:
            everything = read_everything(town / target.folder)
            outputs += [f"{name} {hash(value)}" for name, value in everything.items()]
        except JziError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                faults.append(f"no sentence: {error}")
            if sound:
                faults.append(f"verified as sound, but not readable: {error}")
            refused = True
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
    return outputs, notes, faults, refused


def attack(count: int, seed: int, town: Path, only: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Damage one file after another, and restore each; in `only` some folders, if there are any."""
    rng = random.Random(seed)
    targets = [target for target in TARGETS if not only or target.folder in only]
    kinds = {target: files_by_kind(town / target.folder, target.left_out) for target in targets}
    before = {}
    for target in targets:
        before[target] = _answers(target, town)
        if before[target][2] or before[target][3]:
            raise RuntimeError(f"the undamaged {target.folder} is refused: {before[target]}")
    backup = town.with_name(f"{town.name}.backup")
    shutil.copytree(town, backup, dirs_exist_ok=True)
    turn = [(target, number) for target in targets for number in range(len(kinds[target]))]
    rng.shuffle(turn)
    for number in range(count):
        target, kind = turn[number % len(turn)]
        path = rng.choice(kinds[target][kind])
        name = path.relative_to(town).as_posix()
        how, data = damage(path.read_bytes(), path.name, rng)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        outputs, notes, faults, refused = _answers(target, town)
        same = [one == other for one, other in zip(outputs, before[target][0], strict=False)]
        if faults:
            outcome = "; ".join(faults)
        elif refused:
            outcome = "refused"
        elif all(same) and len(outputs) == len(before[target][0]):
            outcome = "unchanged"
        elif notes != before[target][1]:
            outcome = "noticed"
        else:
            outcome = "changed silently"
        repaired = False
        if target.folder == "features.zarr" and number % 3 == 0:
            outcome, repaired = _repair(outcome, town, backup)
        yield Outcome(target.folder, name, how, outcome, repaired)
        if target.folder in ("features.zarr", "rerank", "model/train"):  # which commands write to
            top = target.folder.partition("/")[0]
            shutil.rmtree(town / top)
            shutil.copytree(backup / top, town / top)
        else:
            path.write_bytes((backup / name).read_bytes())


def _repair(outcome: str, town: Path, backup: Path) -> tuple[str, bool]:
    """What is wrong after the cache was repaired and filled again, beside an outcome; and whether it is as before."""
    for command in ("cache verify --repair features.zarr", *REFILL, "cache verify features.zarr"):
        ran = run(command, town)
        allowed = (0, 1) if "--repair" in command else (0,)  # 1: chunks are left to encode again
        if (fault := fault_of(ran)) or ran.code not in allowed:
            return f"{outcome}; not repaired by {command}: {fault} {ran.output[-300:]} {ran.errors[-500:]}", False
    different = differences(contents(backup, "features.zarr"), contents(town, "features.zarr"))
    if different:
        return f"{outcome}; after its repair {len(different)} files differ: {different[:3]}", False
    return outcome, True
