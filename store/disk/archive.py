"""Check the ZIP archives that torch.save writes before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: Path) -> None:
    """Check the CRC-32 of every entry, which torch.load ignores, and that no entry is compressed.

    An archive without compression cannot be larger in memory than on disk.

    Args:
        path: the file.

    Raises:
        ValueError: an entry is damaged or compressed.
        OSError: the file cannot be read.
        Exception: whatever zipfile raises for an archive that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise ValueError("an entry is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries overlap")
        if damaged := archive.testzip():
            raise ValueError(f"the entry {damaged!r:.60} does not match its checksum")
