"""Files of an index of vectors: what index.json records, and how they are written, verified and read.

An index may come from a stranger: sizes are compared with the store before Faiss reads a file, and afterwards all that
Faiss follows without checking it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jzi.errors import ConfigError, ModelError, first_line
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.files import write_whole
from jzi.store.disk.json_file import read_json
from jzi.store.setting_checks import first_invalid

INFO, INDEX, IDS, SAMPLE, VECTORS = "index.json", "index.faiss", "ids.npy", "sample.npy", "vectors.npy"

#: "hnsw": a graph (Malkov and Yashunin 2018) over vectors in float16; "ivf-pq": inverted lists of product quantizer
#: codes, a byte for eight features (Jegou et al. 2011); "ivf-rabitq": of RaBitQ codes, a bit each (Gao and Long 2024).
Kind = Literal["hnsw", "ivf-pq", "ivf-rabitq"]
KINDS: tuple[Kind, ...] = ("hnsw", "ivf-pq", "ivf-rabitq")

#: Links per node of a graph (M).
LINKS = 32

#: What to do about a damaged or stale index, for error messages.
HINT = "build the index again with `jzi index --faiss` or `--lance`"


@dataclass(frozen=True)
class IndexInfo:
    """What index.json records.

    Attributes:
        kind: see `KINDS`.
        cells: number of vectors.
        width: number of features.
        shape: rows and columns of the store.
        store: fingerprint of the store's vectors (`jzi.vectors.faiss_index.cell_ids`).
        lists: number of inverted lists; 0 for a graph.
        copied: whether there is a copy of the vectors, vectors.npy.
        files: SHA-256 of the other files. The copy has none: it is as large as the store.
        format: version of the files.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    cells: Annotated[int, Field(ge=1, le=2**33)]
    width: Annotated[int, Field(ge=1, le=65_536)]
    shape: tuple[int, int]
    store: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    lists: Annotated[int, Field(ge=0, le=2**24)]
    copied: bool
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    format: Literal[1] = 1

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector in the index, without its id."""
        if self.kind == "hnsw":
            return 2 * self.width + 4 * 2 * LINKS
        return code_bytes(self.kind, self.width)

    @property
    def file_bytes(self) -> tuple[int, int]:
        """Least and greatest size of index.faiss, bytes."""
        vectors = self.cells * (self.vector_bytes + (8 if self.lists else 12))
        around = 4 * self.width * (self.lists + 2 * self.width + 256) + 64 * self.lists + 2**16
        return self.cells * self.vector_bytes // 2, int(1.1 * vectors) + around


def code_bytes(kind: Kind, width: int) -> int:
    """Bytes of a vector's code in inverted lists."""
    return code_parts(width) if kind == "ivf-pq" else (width + 7) // 8 + 8


def code_parts(width: int) -> int:
    """Parts of a vector that a product quantizer codes with a byte each: of eight features or somewhat more."""
    return max(parts for parts in range(1, width + 1) if width % parts == 0 and parts <= max(1, width // 8))


def read_info(folder: Path) -> IndexInfo:
    """Read index.json.

    Raises:
        ModelError: there is none, or it is damaged or of another version.
    """
    path = folder / INFO
    try:
        return TypeAdapter(IndexInfo).validate_json(json.dumps(read_json(path, ModelError, HINT)))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"there is no index in {folder}: build it, or search without one") from None
    except ValidationError as error:
        invalid = first_invalid(error)
        raise ModelError(f"{path} has an invalid {invalid.name or 'content':.80} ({invalid.reason}): {HINT}") from error


def import_faiss() -> Any:
    """Import Faiss, an optional dependency.

    Raises:
        ConfigError: Faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("retrieval needs Faiss: pip install 'jzi[retrieve]'") from error
    return faiss


def index_problem(faiss: Any, index: Any, info: IndexInfo) -> str:
    """What is wrong with an index that was read; empty if nothing is."""
    if (index.ntotal, index.d, index.metric_type) != (info.cells, info.width, faiss.METRIC_INNER_PRODUCT):
        return f"has {index.ntotal} vectors of {index.d} features, not {info.cells} of {info.width}"
    if info.kind == "hnsw":
        return _graph_problem(faiss, index, info)
    if info.kind == "ivf-rabitq":
        if type(index) is not faiss.IndexPreTransform or index.chain.size() != 1:
            return "is an index of another kind"
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        if (transform.d_in, transform.d_out) != (info.width, info.width):
            return "has a rotation of another size"
        index = faiss.downcast_index(index.index)
    if type(index) is not (faiss.IndexIVFPQ if info.kind == "ivf-pq" else faiss.IndexIVFRaBitQ):
        return "is an index of another kind"
    quantizer, lists = faiss.downcast_index(index.quantizer), index.invlists
    codes = code_bytes(info.kind, info.width)
    if not (
        isinstance(quantizer, faiss.IndexFlat)
        and (quantizer.ntotal, quantizer.d) == (info.lists, info.width)
        and (index.nlist, index.d, index.ntotal) == (info.lists, info.width, info.cells)
        and (lists.nlist, lists.code_size, index.code_size) == (info.lists, codes, codes)
    ):
        return "has other lists or codes than index.json records"
    if sum(lists.list_size(number) for number in range(info.lists)) != info.cells:
        return "has lists of another number of vectors"
    return ""


def _graph_problem(faiss: Any, index: Any, info: IndexInfo) -> str:
    if type(index) is not faiss.IndexHNSWSQ:
        return "is an index of another kind"
    graph, storage = index.hnsw, faiss.downcast_index(index.storage)
    if not (
        type(storage) is faiss.IndexScalarQuantizer
        and (storage.ntotal, storage.d) == (info.cells, info.width)
        and storage.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and storage.code_size == 2 * info.width
        and storage.codes.size() == 2 * info.width * info.cells
    ):
        return "has other vectors than index.json records"
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets)
    links = graph.neighbors.size()
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if not (
        len(levels) == info.cells
        and len(offsets) == info.cells + 1
        and levels.min() >= 1
        and levels.max() < len(per_level)
        and (np.diff(per_level) >= 0).all()
        and offsets[0] == 0
        and offsets[-1] == links
        and (np.diff(offsets.astype(np.int64)) == per_level[levels]).all()
        and 0 <= graph.entry_point < info.cells
        and 0 <= graph.max_level < levels[graph.entry_point]
    ):
        return "has a graph whose sizes do not fit one another"
    neighbors = faiss.rev_swig_ptr(graph.neighbors.data(), links)
    if neighbors.min(initial=-1) < -1 or neighbors.max(initial=-1) >= info.cells:
        return "has links to vectors that do not exist"
    return ""


def verify_digest(path: Path, info: IndexInfo) -> None:
    try:
        digest = remembered_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): {HINT}") from error
    if digest != info.files.get(path.name):
        raise ModelError(f"{path} does not match its SHA-256 in {INFO}, it was changed or damaged: {HINT}")


def load_array(path: Path, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, SyntaxError, MemoryError, RecursionError, TokenError) as error:  # of numpy's header
        raise ModelError(f"{path} cannot be read ({first_line(error)}): {HINT}") from error
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        raise ModelError(f"{path} does not contain an array of {shape}: {HINT}")
    return array


def save_array(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_index_file(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be written: {first_line(error)}") from error


@contextlib.contextmanager
def faiss_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, AssertionError) as error:
        raise ModelError(f"{what} ({first_line(error)}): {HINT}") from error


@contextlib.contextmanager
def bounded_reads(faiss: Any, limit: int) -> Iterator[None]:
    """Bound what Faiss allocates for a vector of a file, where this version of it can."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(limit)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)
