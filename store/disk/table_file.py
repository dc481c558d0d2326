"""Read tables of strangers, CSV or Parquet, within bounds."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from jzi.errors import PhotoTableError, first_line

#: Most columns of a table and characters of its header.
MAX_COLUMNS, MAX_HEADER = 1000, 2**20

#: What may separate the columns of a CSV file; the first of those that are equally frequent.
SEPARATORS = ",;\t|"

_QUOTED = re.compile(r'"[^"]*"')

#: Most rows of a Parquet file, and bytes of what is read of it.
MAX_ROWS, MAX_TABLE = 10**8, 2**32


def read_table(source: Path, is_text: Callable[[str], bool]) -> pd.DataFrame:
    """Read a CSV file (separated by comma, semicolon, tab or |) or a Parquet file.

    Args:
        source: the file; Parquet by its suffix.
        is_text: whether a column of this name of a CSV file is read as text; ids of 16 digits would be rounded.

    Raises:
        PhotoTableError: it cannot be read, or is too large.
    """
    try:
        if source.suffix.lower() in (".parquet", ".pq", ".geoparquet"):
            return _read_parquet(source)
        with source.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline(MAX_HEADER)
        if len(header) == MAX_HEADER:
            raise PhotoTableError(f"{source} is not a CSV table: its first line has {MAX_HEADER} characters or more")
        if "\0" in header or not header.strip():
            raise PhotoTableError(f"{source} is not a CSV or Parquet table")
        separator = _separator(header)
        names = next(csv.reader([header], delimiter=separator))
        fields = _first_row_length(source, separator)
        if max(len(names), fields) > MAX_COLUMNS:
            raise PhotoTableError(f"{source} has {max(len(names), fields)} columns: the most is {MAX_COLUMNS}")
        ids = {column: str for column in names if is_text(column)}
        # Fields beyond the header are ignored; pandas does not warn about them if usecols is given
        usecols = (lambda _: True) if fields > len(names) else None
        return pd.read_csv(source, sep=separator, encoding="utf-8-sig", dtype=ids, index_col=False, usecols=usecols)
    except PhotoTableError:
        raise
    except UnicodeDecodeError as error:  # of spreadsheets that save in the code page of the country
        raise PhotoTableError(f"{source} is not in UTF-8 ({first_line(error)}): save it as CSV UTF-8") from error
    except Exception as error:  # of csv, pandas and pyarrow
        raise PhotoTableError(f"{source} cannot be read as a table: {first_line(error)}") from error


def _read_parquet(source: Path) -> pd.DataFrame:
    """Read the columns of a Parquet file that are not nested.

    Text stays a dictionary until its size is known: a file of a few kilobytes may hold terabytes of the same text.
    """
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow.parquet import ParquetFile

    with ParquetFile(source) as file:
        fields = [field for field in file.schema_arrow if not pa.types.is_nested(field.type)]
        rows = file.metadata.num_rows
        if len(fields) > MAX_COLUMNS or rows > MAX_ROWS:
            raise PhotoTableError(
                f"{source} has {len(fields)} columns and {rows} rows: the most are {MAX_COLUMNS} and {MAX_ROWS}"
            )
    names = [field.name for field in fields]
    batches, size = [], 0
    with ParquetFile(source, read_dictionary=[field.name for field in fields if _is_bytes(field.type)]) as file:
        for batch in file.iter_batches(columns=names):
            batch.validate(full=True)  # that text is UTF-8: pandas would only find out where it is used
            for column in batch.columns:
                size += column.nbytes
                if pa.types.is_dictionary(column.type) and len(column):
                    lengths = compute.binary_length(column.dictionary)
                    size += compute.sum(lengths.take(column.indices)).as_py() or 0
            if size > MAX_TABLE:
                raise PhotoTableError(f"{source} becomes larger than {MAX_TABLE >> 30} GiB: split it into several")
            columns = [
                column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                for column in batch.columns
            ]
            batches.append(pa.RecordBatch.from_arrays(columns, names))
        metadata = file.schema_arrow.metadata
    frame = (
        pa.Table.from_batches(batches).replace_schema_metadata(metadata).to_pandas()
        if batches
        else pd.DataFrame(columns=names)
    )
    frame = frame.reset_index(drop=frame.index.names == [None])  # a named index is used as a column
    for name in [name for name, dtype in frame.dtypes.items() if dtype.kind == "O"]:
        frame[name] = [
            cell.decode("utf-8", "backslashreplace") if isinstance(cell, bytes) else cell for cell in frame[name]
        ]
    return frame


def _is_bytes(type: Any) -> bool:
    from pyarrow import types

    return any(of(type) for of in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))


def _separator(header: str) -> str:
    """The separator that is most frequent outside of quotes; the comma if there is none.

    The time of `csv.Sniffer` grows with the square of the header's length: quotes take it hours for a megabyte.
    """
    bare = _QUOTED.sub("", header)
    return max(SEPARATORS, key=bare.count)


def _first_row_length(source: Path, separator: str) -> int:
    """Number of fields of the first row below the header; 0 if there is none or csv cannot read it."""
    with source.open(encoding="utf-8-sig", newline="") as file, contextlib.suppress(csv.Error):
        rows = csv.reader(file, delimiter=separator)
        next(rows, None)
        return len(next(filter(None, rows), ()))
    return 0
