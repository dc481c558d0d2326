"""Hostile files as hypothesis strategies; `make fuzz` and the property tests draw from them.

Each example is made from a kind and a seed, so that a failure is repeated by its two values. Tests that attack a cache
or a model in place take their number of attacks and their seed from `attacks` and `attack_seed`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import Affine

SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Hostile:
    """Files of one example.

    Attributes:
        kind: what was made.
        seed: seed of it.
        name: the file to read.
        files: contents by relative path, `name` among them.
    """

    kind: str
    seed: int
    name: str
    files: dict[str, bytes]

    def __repr__(self) -> str:
        return f"Hostile({self.kind!r}, {self.seed})"

    def write(self, folder: Path) -> Path:
        """Write the files below a folder, and return the path of the file to read."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / self.name


def damage(data: bytes, rng: random.Random) -> bytes:
    """Truncate a file, change some of its bytes, repeat or remove a part, or leave it as it is."""
    edited = bytearray(data)
    how = rng.choice(["none", "cut", "flip", "flip", "header", "header", "numbers", "repeat", "remove"])
    if how == "cut":
        return data[: rng.randrange(len(data) + 1)]
    if how in ("flip", "header"):
        end = len(data) if how == "flip" else min(len(data), 256)
        for _ in range(rng.choice([1, 2, 5, 50])):
            edited[rng.randrange(end)] = rng.randrange(256)
    elif how == "numbers":  # sizes, counts and offsets
        for _ in range(rng.choice([1, 3, 10])):
            at = rng.randrange(max(1, min(len(data), 600) - 4))
            value = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, at])
            edited[at : at + 4] = struct.pack(rng.choice("<>") + "I", value)
    elif how in ("repeat", "remove"):
        start = rng.randrange(len(data))
        end = start + rng.randrange(1, 2000)
        edited[start:end] = edited[start:end] * (3 if how == "repeat" else 0)
    return bytes(edited)


#: What values of JSON and TOML are replaced by.
VALUES: list[Any] = [10**6, 10**18, 10**30, -1, 0, 1.5, 1e308, float("nan"), float("inf"), True, None, "", "x", [], {},
                     [[]], "\x00", "x" * 5000, "../../x", "int64", "gzip"]  # fmt: skip


def attacks(short: int, thorough: int, fuzz: int) -> int:
    """Number of attacks in place: `short`, or that of HYPOTHESIS_PROFILE."""
    return {"thorough": thorough, "fuzz": fuzz}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), short)


def attack_seed(name: str) -> str:
    """Seed of the attacks of a test: its name, and another one on every run of `make fuzz`, which prints it."""
    if os.environ.get("HYPOTHESIS_PROFILE") != "fuzz":
        return name
    seed = os.environ.get("JZI_FUZZ_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"{name}: JZI_FUZZ_SEED={seed}")  # shown by pytest if the test fails
    return f"{name} {seed}"


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit."""
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def edit_values(document: Any, rng: random.Random) -> Any:
    """Delete or replace a value somewhere in a document of dictionaries and lists, in place."""
    node = document
    while node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not (isinstance(node[key], dict | list) and node[key]) or rng.random() < 0.2:
            break
        node = node[key]
    if not document:  # emptied before
        return document
    if rng.random() < 0.25:
        del node[key]
    elif isinstance(node[key], int) and rng.random() < 0.5:
        node[key] = rng.choice([node[key] + 1, node[key] * 1000, max(node[key] - 1, 0)])
    else:
        node[key] = rng.choice([value for value in VALUES if repr(value) != repr(node[key])])
    return document


def edit_json(data: bytes, rng: random.Random) -> bytes:
    """Delete or replace a value in a JSON file."""
    return json.dumps(edit_values(json.loads(data), rng)).encode()


# Photos

_MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I"],
    "WEBP": ["RGB", "RGBA"],
    "TIFF": ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"],
    "GIF": ["P", "L"],
    "BMP": ["RGB", "1"],
    "EPS": ["RGB"],
    "PPM": ["RGB"],
    "JPEG2000": ["RGB"],
    "AVIF": ["RGB"],
    "ICO": ["RGB"],
    "TGA": ["RGB"],
}


def _image(rng: random.Random, mode: str) -> Image.Image:
    size = rng.choice([(1, 1), (1, 300), (300, 1), (40, 30), (97, 64)])
    values = np.random.default_rng(rng.randrange(2**32))
    if mode == "F":
        pixels = values.normal(size=size[::-1]).astype(np.float32)
        pixels[0, 0] = rng.choice([0, np.nan, np.inf, -np.inf, 3e38])
        return Image.fromarray(pixels)
    if mode == "I":
        return Image.fromarray(values.integers(-(2**31), 2**31, size[::-1]).astype(np.int32))
    if mode == "I;16":
        return Image.fromarray(values.integers(0, 2**16, size[::-1]).astype(np.uint16))
    return Image.fromarray(values.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).convert(mode)


def exif_bytes(rng: random.Random) -> bytes:
    """EXIF with a position and entries of odd types and sizes; directories may lead back to themselves."""
    order = rng.choice("<>")
    entries = []
    rational = struct.pack(order + "6I", 48, rng.choice([0, 1]), 12, 1, 0, rng.choice([0, 1]))
    for _ in range(rng.choice([1, 5, 30])):
        tag = rng.choice([0x0112, 0x8769, 0x8825, 0xA005, 0x010F, 0x9003, 0x9011, 1, 2, 3, 4, 17, rng.randrange(65536)])
        kind, count = rng.choice([1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 99]), rng.choice([0, 1, 2, 3, 5, 1000, 2**32 - 1])
        entries.append((tag, kind, count, rng.choice([0, 8, 10, 100, 2**32 - 1, rng.randrange(400)])))
    body = struct.pack(order + "H", rng.choice([len(entries), 0, 65535]) if rng.random() < 0.3 else len(entries))
    body += b"".join(struct.pack(order + "HHII", *entry) for entry in entries) + struct.pack(order + "I", 8)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", rng.choice([8, 8, 8, 0, 2**31, 4]))
    return head + body + rational * 3


def _encoded(rng: random.Random, formats: tuple[str, ...] = ()) -> bytes:
    format = rng.choice(formats or tuple(_MODES))
    image = _image(rng, rng.choice(_MODES[format]))
    options: dict = {}
    if format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") and rng.random() < 0.6:
        options["exif"] = exif_bytes(rng) if format == "TIFF" else b"Exif\0\0" + exif_bytes(rng)
    if format == "JPEG":
        options |= {"progressive": rng.random() < 0.3, "comment": b"x" * rng.choice([0, 60000])}
    if format == "TIFF":
        options["compression"] = rng.choice([None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
    if format in ("PNG", "GIF", "WEBP", "TIFF", "AVIF") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [_image(rng, image.mode) for _ in range(3)]}
    file = io.BytesIO()
    try:
        image.save(file, format, **options)
    except Exception:  # of Pillow's writers, for some modes, options and entries of EXIF
        file = io.BytesIO()  # not every mode goes with every option
        image.convert("RGB").save(file, "GIF" if format == "GIF" else "JPEG")
    return file.getvalue()


def png(width: int, height: int, data: bytes, chunks: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    """A PNG of a declared size with any compressed data and any chunks before it."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG, of at most 65 533 bytes."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF of one directory with entries (tag, type, count, value or offset)."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8) + tail


def _jpeg(image: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    (image or Image.new("RGB", (40, 30), "red")).save(file, "JPEG")
    return file.getvalue()


def _huge(rng: random.Random) -> bytes:
    side = rng.choice([20_000, 100_000, 2**31 - 1])
    if rng.random() < 0.4:
        return png(side, rng.choice([1, 20_000, side]), zlib.compress(bytes(1000)))
    if rng.random() < 0.5:
        data = bytearray(_jpeg())
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", rng.choice([65500, 12000]), rng.choice([65500, 20000]))
        return bytes(data)
    return tiff([(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
                 (278, 4, 1, side), (279, 4, 1, 2**32 - 1)])  # fmt: skip


def _amplified(rng: random.Random) -> bytes:
    """Directories whose entries share their values, many EXIF segments, and chunks that unpack to much."""
    which = rng.choice(["tiff", "exif", "segments", "text", "profile", "chunks", "scans"])
    shared = [(tag, 7, 200_000, 60_000) for tag in range(1000, 5000)]
    if which == "tiff":
        return tiff([(256, 4, 1, 8), (257, 4, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), *shared], bytes(300_000))
    if which == "exif":
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "WEBP", exif=b"Exif\0\0" + tiff(shared, bytes(300_000)))
        return file.getvalue()
    base = _jpeg()
    if which == "segments":
        return base[:2] + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 300 + base[2:]
    if which == "scans":
        file = io.BytesIO()
        Image.new("RGB", (800, 800), "red").save(file, "JPEG", progressive=True)
        data = file.getvalue()
        scans = data[data.rindex(b"\xff\xda") : -2]
        return data[:-2] + scans * 5000 + data[-2:]
    packed = zlib.compress(bytes(80_000_000))
    chunks = {
        "text": chunk(b"zTXt", b"k\0\0" + packed) * 3,
        "profile": chunk(b"iCCP", b"k\0\0" + packed),
        "chunks": chunk(b"abCd", b"") * 50_000,
    }[which]
    return png(8, 8, zlib.compress(bytes(8 * 25)), chunks)


def _plain_photo(rng: random.Random) -> bytes:
    return damage(_encoded(rng, ("JPEG", "PNG", "WEBP", "TIFF")), rng)


def _any_photo(rng: random.Random) -> bytes:
    return damage(_encoded(rng), rng)


def _polyglot(rng: random.Random) -> bytes:
    one, other = _encoded(rng), _encoded(rng)
    return rng.choice([one + other, one[:20] + other, one[: rng.randrange(len(one))] + other, b"\0" * 10 + one])


def _with_exif(rng: random.Random) -> bytes:
    exif, base = damage(exif_bytes(rng), rng), _jpeg()
    if rng.random() < 0.5:
        return png(4, 4, zlib.compress(bytes(4 * 13)), chunk(b"eXIf", exif))
    return base[:2] + segment(0xE1, b"Exif\0\0" + exif) * rng.choice([1, 2]) + base[2:]


PHOTO_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "plain": _plain_photo,
    "any format": _any_photo,
    "polyglot": _polyglot,
    "exif": _with_exif,
    "huge": _huge,
    "amplified": _amplified,
    "noise": lambda rng: rng.randbytes(rng.choice([0, 1, 10, 5000])),
}


def photo(kind: str, seed: int) -> Hostile:
    """The hostile photo of a kind and a seed."""
    rng = random.Random(seed)
    name = rng.choice(["a.jpg", "a.png", "a.tif", "a.webp"])
    return Hostile(kind, seed, name, {name: PHOTO_KINDS[kind](rng)})


def photos() -> st.SearchStrategy[Hostile]:
    """Photos that are damaged, huge, of odd formats and modes, polyglot, or with hostile EXIF."""
    return st.builds(photo, st.sampled_from([*PHOTO_KINDS]), SEEDS)


# Tables

_CELLS = [
    "a", "a.jpg", "a.jpg", "b", "", " ", "..", ".", "/", "../a.jpg", "../../etc/passwd", "/etc/passwd", "/dev/zero",
    "x" * 5000, "x/" * 2000 + "a.jpg", "a\0.jpg", "\0", "=1+1", "\x1b[2J", "~root", "file:///a.jpg", "C:\\a.jpg", "nan",
    "48.2", "16.37", "1e400", "-inf", "1e-400", "91", "0x10", "true", "2020-01-01T00:00:00Z", "9" * 400, "[1, 2, 3]",
    "[" + "9" * 30 + "]", "train", "val", "\ud7ff\U0001f600", 'quo"te', "new\nline", "x" * 140_000, "sub/../a.jpg",
    "//a.jpg", "./a.jpg", "0001-01-01", "99999-01-01T00:00:00Z",
]  # fmt: skip
_HEADERS = [
    "id", "image_id", "path", "file", "lat", "latitude", "lon", "longitude", "heading", "split", "drive", "sequence",
    "captured_at", "device", "note", "..", ".", "", "a/b", "photo", "line", "embedding", "status", "listed", "views",
    "zarr.json", "x" * 200, "x" * 140_000, "\0", "\x1b", "é", "id", "photo_sha256",
]  # fmt: skip


def _csv_table(rng: random.Random) -> bytes:
    header = ["id", "lat", "lon", *rng.choices(_HEADERS, k=rng.choice([0, 0, 2, 6]))]
    rng.shuffle(header)
    good = {"id": "a", "lat": "48.2", "lon": "16.3"}
    rows = [[good.get(name, "x") for name in header]]
    for _ in range(rng.choice([0, 3, 20])):
        row = [good[name] if name in good and rng.random() < 0.7 else rng.choice(_CELLS) for name in header]
        rows.append(row[: rng.randrange(len(row))] if rng.random() < 0.1 else row)
    separator = rng.choice([",", ";", "\t", "|"])

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in separator + '"\n') else text

    text = rng.choice(["\n", "\r\n", "\r"]).join(separator.join(map(cell, row)) for row in [header, *rows])
    return text.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace")


def _damaged_table(rng: random.Random) -> bytes:
    return damage(_csv_table(rng), rng)


def _odd_table(rng: random.Random) -> bytes:
    return rng.choice([
        b"id,lat,lon\n" + b'"' * 100_001,
        b"," * 200_000 + b"\n",
        b"x" * 3_000_000,
        b"id,lat,lon\n" + b"a,48,16" + b",1" * 100_000 + b"\n",
        b"\xff\xfe\0\0",
        b"id,lat,lon\n\0\0\0",
        b"id,lat,lon\r" * 1000,
        b'"id\n",lat,lon\na,48,16\n',
        b"id,lat,lon\n" + b"a,48.2,16.3,\n" * 1000,
        b'id,"lat,lon' + b',"a' * 300_000 + b"\n",
    ])  # fmt: skip


def _parquet_table(rng: random.Random) -> bytes:
    """Parquet with columns of any type, damaged or with a byte of its text changed, which leaves its structure."""
    rows = rng.choice([1, 3, 500])
    columns: dict[str, Any] = {"id": [f"p{row}" for row in range(rows)], "lat": [48.2] * rows, "lon": [16.3] * rows}
    cells = ["x", "a.jpg", 1e308, float("nan"), 2**62, [1, 2], {"a": 1}, b"\xff\0x", None, True]
    for name in rng.choices(["note", "path", "id", "lat", "heading", "split", "captured_at"], k=rng.choice([0, 1, 3])):
        columns[name] = [rng.choice(cells)] * rows
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file, compression=rng.choice([None, "snappy", "gzip"]))
    data = file.getvalue()
    return damage(data, rng) if rng.random() < 0.7 else data.replace(b"p0", b"p\xff")


TABLE_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "parquet": _parquet_table,
    "table": _csv_table,
    "damaged table": _damaged_table,
    "odd table": _odd_table,
}


def table(kind: str, seed: int) -> Hostile:
    """The hostile photo table of a kind and a seed, with the photo a.jpg beside it."""
    rng = random.Random(seed)
    name = "table.parquet" if kind == "parquet" else "table.csv"
    return Hostile(kind, seed, name, {name: TABLE_KINDS[kind](rng), "a.jpg": _jpeg(), "sub/b.jpg": b""})


def tables() -> st.SearchStrategy[Hostile]:
    """Photo tables with hostile cells, headers, encodings and paths."""
    return st.builds(table, st.sampled_from([*TABLE_KINDS]), SEEDS)


# Rasters

_DTYPES = ["uint8", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64",
           "complex64", "complex128", "complex_int16"]  # fmt: skip


def geotiff(rng: random.Random, crs: str = "EPSG:32633") -> bytes:
    """A small GeoTIFF of any data type, number of bands, layout, geotransform and metadata."""
    dtype = rng.choice(_DTYPES)
    bands, side = rng.choice([1, 1, 2, 3, 4, 5, 20]), rng.choice([1, 16, 64])
    transforms = [Affine(1, 0, 600_000, 0, -1, 5_340_000)] * 4 + [
        Affine(1, 0, 600_000, 0, 1, 5_340_000),
        Affine(0.7, 0.7, 600_000, 0.7, -0.7, 5_340_000),
        Affine(0, 0, 600_000, 0, 0, 5_340_000),
        Affine(np.nan, 0, 0, 0, -1, 0),
        Affine(1e-9, 0, 600_000, 0, -1e6, 5_340_000),
        Affine(1e300, 0, 1e300, 0, -1e300, 1e300),
        Affine(2, 1, 600_000, 2, 1, 5_340_000),
    ]
    crs_names = [crs] * 5 + ["EPSG:4326", "EPSG:4978", "EPSG:5773", 'LOCAL_CS["x",UNIT["metre",1]]', "EPSG:3857", None]
    profile: dict[str, Any] = rng.choice(
        [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"compress": "deflate"}]
    )
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 120, (bands, side, side))
    if dtype.startswith("float") and rng.random() < 0.5:
        values = np.full(values.shape, rng.choice([np.nan, np.inf, 1e300 if dtype == "float64" else 1e38]))
    nodata = rng.choice([None, None, 0, 255, np.nan if dtype.startswith("float") else 1])
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=side, height=side, count=bands, dtype=dtype, crs=rng.choice(crs_names),
            transform=rng.choice(transforms), nodata=None if dtype == "int8" else nodata, **profile,
        ) as file:  # fmt: skip
            file.write(values.astype("complex64" if dtype == "complex_int16" else dtype))
            if rng.random() < 0.3:
                file.update_tags(
                    ns="OVERVIEWS", OVERVIEW_FILE=rng.choice(["secret.tif", "/vsicurl/http://127.0.0.1:9/x"])
                )
        return bytes(memory.read())


def vrt(sources: list[str], relative: int = 1, attributes: str = "", body: str = "", dataset: str = "") -> bytes:
    """A VRT of one band over files of 64 x 64 pixels in UTM 33."""
    parts = "".join(
        f"<SimpleSource {attributes}><SourceFilename relativeToVRT='{relative}'>{name}</SourceFilename>"
        "<SourceBand>1</SourceBand><SrcRect xOff='0' yOff='0' xSize='64' ySize='64'/>"
        "<DstRect xOff='0' yOff='0' xSize='64' ySize='64'/></SimpleSource>"
        for name in sources
    )
    return (
        f"<VRTDataset rasterXSize='64' rasterYSize='64' {dataset}><SRS>EPSG:32633</SRS>"
        "<GeoTransform>600000, 1, 0, 5340000, 0, -1</GeoTransform>"
        f"<VRTRasterBand dataType='Byte' band='1'>{parts}{body}</VRTRasterBand></VRTDataset>"
    ).encode()


#: Where a VRT must not lead: other folders, other machines, special files, itself.
ELSEWHERE = [
    "../secret.tif", "/etc/passwd", "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", "/dev/zero",
    "/vsis3/bucket/x.tif", "vrt:///etc/passwd", "map.vrt", "GTIFF_DIR:1:/etc/passwd", "/vsizip/../x.zip/x.tif", "sub",
    "&lt;VRTDataset/&gt;", "WMS:http://127.0.0.1:9/", "/vsisubfile/0_10,/etc/passwd", "sub/../../secret.tif", "",
]  # fmt: skip


def _vrt_elsewhere(rng: random.Random) -> bytes:
    return vrt(rng.choices(ELSEWHERE, k=rng.choice([1, 3])), rng.choice([0, 1]))


def _odd_vrt(rng: random.Random) -> bytes:
    where = rng.choice(ELSEWHERE)
    name = f"<SourceFilename>{where}</SourceFilename>"
    return rng.choice([
        vrt([], body=f"<sourcefilename>{where}</sourcefilename><simplesource>{name}</simplesource>"),
        vrt(["tile.tif"], attributes=f"SourceFilename='{where}'"),
        vrt([], body=f"<Overview>{name}<SourceBand>1</SourceBand></Overview>"),
        vrt([]).replace(b"band='1'", b"band='1' subClass='VRTRawRasterBand'").replace(
            b"</VRTRasterBand>", f"{name}<ImageOffset>0</ImageOffset></VRTRasterBand>".encode()),
        vrt([], dataset="subClass='VRTWarpedDataset'", body=f"<SourceDataset>{where}</SourceDataset>"),
        b"<!DOCTYPE x [<!ENTITY e SYSTEM '/etc/passwd'>]>" + vrt(["&e;"]),
        b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>" + vrt(["&b;"]),
        f"<GDAL_WMS><Service name='TMS'><ServerUrl>{where}</ServerUrl></Service></GDAL_WMS>".encode(),
        json.dumps({"type": "FeatureCollection", "stac_version": "1.0.0", "features": [{"assets": where}]}).encode(),
        b"<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>" + where.encode() + b"</MDI></Metadata>" + vrt([]),
        vrt(["<VRTDataset>"] * 3),
        b"<VRTDataset>" * 5000,
        vrt([]).replace(b"'64'", b"'2147483647'"),
        vrt(["tile.tif"]).replace(b"Byte", rng.choice([b"CFloat64", b"Int64", b"Unknown", b""])),
    ])  # fmt: skip


def _raw_raster(rng: random.Random) -> bytes:
    """Text headers that name a file with pixels: ENVI, ERS, PDS, MRF."""
    where = rng.choice(ELSEWHERE)
    return rng.choice([
        f'DatasetHeader Begin\n Version = "6.0"\n DataFile = "{where}"\nDatasetHeader End\n'.encode(),
        f"<MRF_META><Raster><Size x='64' y='64'/><DataFile>{where}</DataFile></Raster></MRF_META>".encode(),
        f'PDS_VERSION_ID = PDS3\n^IMAGE = "{where}"\nEND\n'.encode(),
        f"OziExplorer Map Data File Version 2.2\nx\n{where}\n".encode(),
    ])  # fmt: skip


RASTER_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "geotiff": geotiff,
    "damaged geotiff": lambda rng: damage(geotiff(rng), rng),
    "vrt": _vrt_elsewhere,
    "odd vrt": _odd_vrt,
    "damaged vrt": lambda rng: damage(vrt(["tile.tif"]), rng),
    "raw": _raw_raster,
    "photo": lambda rng: _encoded(rng),
}


def raster(kind: str, seed: int) -> Hostile:
    """The hostile raster of a kind and a seed."""
    rng = random.Random(seed)
    name = "map.vrt" if "vrt" in kind else rng.choice(["map.tif", "map.ers", "map.jpg", "map.json"])
    files = {name: RASTER_KINDS[kind](rng)}
    if "vrt" in kind:
        files["tile.tif"] = geotiff(rng)
    if rng.random() < 0.15:
        suffix = rng.choice([".ovr", ".msk", ".aux.xml"])
        files[name + suffix] = rng.choice([vrt([rng.choice(ELSEWHERE)]), geotiff(rng), _odd_vrt(rng)])
    return Hostile(kind, seed, name, files)


def rasters() -> st.SearchStrategy[Hostile]:
    """GeoTIFF of odd types and geometries, damaged ones, and VRT and headers that name other files and machines."""
    return st.builds(raster, st.sampled_from([*RASTER_KINDS]), SEEDS)


# Settings, regions and checkpoints

_SETTINGS = """
[pyramid]
crs = "EPSG:32633"
west = 600000.0
north = 5340000.0
size = 1280.0
grid = 4
levels = 3
[map]
rasters = ["ortho.tif", "tiles/*.tif"]
stretch = [0, 255]
[queries]
table = "photos.csv"
views = 2
[encoder]
name = "encoder"
image_size = 84
[finetune]
blocks = "all"
[train]
epochs = 3
learning_rate = 1e-3
trackers = ["tensorboard"]
[heads]
sigma = 0.5
"""

_REGION = {
    "type": "FeatureCollection",
    "features": [{
        "type": "Feature",
        "properties": {"name": "x"},
        "geometry": {
            "type": "MultiPolygon",
            "coordinates": [[[[16.3, 48.2], [16.4, 48.2], [16.4, 48.3], [16.3, 48.2]]]],
        },
    }],
}  # fmt: skip


def _settings(rng: random.Random) -> bytes:
    import tomlkit

    if rng.random() < 0.4:
        return damage(_SETTINGS.encode(), rng)
    document = tomlkit.parse(_SETTINGS).unwrap()
    for _ in range(rng.choice([1, 1, 3])):
        edit_values(document, rng)
    with contextlib.suppress(Exception):  # None and others that TOML does not have
        return tomlkit.dumps(document).encode("utf-8", "surrogatepass")
    return json.dumps(document).encode()


def _region(rng: random.Random) -> bytes:
    if rng.random() < 0.1:  # deeply nested
        return b"[" * rng.choice([500, 100_000])
    if rng.random() < 0.3:
        return damage(json.dumps(_REGION).encode(), rng)
    document = json.loads(json.dumps(_REGION))
    for _ in range(rng.choice([1, 1, 3])):
        edit_values(document, rng)
    return json.dumps(document).encode()


def _checkpoint(rng: random.Random) -> bytes:
    import torch

    buffer, weights = io.BytesIO(), {f"decoder.{number}": torch.full((3, 4), float(number)) for number in range(4)}
    torch.save({"model_state_dict": weights, "epoch": 3}, buffer)
    return damage(buffer.getvalue(), rng)


FILE_KINDS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "settings": ("jzi.toml", _settings),
    "region": ("region.geojson", _region),
    "checkpoint": ("checkpoint.pth", _checkpoint),
}


def file(kind: str, seed: int) -> Hostile:
    """The hostile file of a kind and a seed."""
    name, make = FILE_KINDS[kind]
    return Hostile(kind, seed, name, {name: make(random.Random(seed))})


def files(kind: str) -> st.SearchStrategy[Hostile]:
    """Hostile files of a kind of `FILE_KINDS`."""
    return st.builds(file, st.just(kind), SEEDS)
