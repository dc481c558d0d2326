"""Errors that a user can act on. Each message is one sentence: what failed, the value seen, and what to do."""

import re

#: Longest word of a message, characters: longer than paths are in practice. Values may come from strangers.
MAX_WORD = 400


class JziError(Exception):
    """Base of all errors that the command line turns into one sentence and exit code 2.

    Words of the message beyond `MAX_WORD` characters are shortened.
    """

    def __str__(self) -> str:
        return re.sub(rf"(\S{{{MAX_WORD // 2}}})\S{{{MAX_WORD // 2},}}", r"\1...", super().__str__())


class ConfigError(JziError):
    """A setting or option is missing, unknown or invalid."""


class PyramidError(JziError):
    """The geometry of an area is invalid: its CRS, size, grid or levels."""


class BandsError(JziError):
    """The geometry of bands of cells is invalid: their cell size, latitudes or longitudes, or the region."""


class ImageryError(JziError):
    """A raster cannot be read, is not georeferenced, or does not touch the area."""


class PhotoError(JziError):
    """A photo is unreadable, truncated or too large."""


class PhotoTableError(JziError):
    """A table or folder of photos cannot be used."""


class DatasetError(JziError):
    """A data set cannot be built, read or published."""


class PairsError(JziError):
    """A data set of pairs of photos and aerial images is incomplete, of another layout, or lacks metric labels."""


class EncoderError(JziError):
    """An encoder cannot be loaded or is of an unsupported kind."""


class CacheError(JziError):
    """A feature cache is missing, incomplete or cannot be written."""


class CacheMismatchError(CacheError):
    """A feature cache belongs to another encoder, pyramid or imagery."""


class CacheCorruptError(CacheError):
    """A chunk of a feature cache does not match its checksum."""


class ClusterError(JziError):
    """A Ray cluster does not answer, or its nodes lack what they need."""


class ModelError(JziError):
    """A model folder is missing, incomplete, damaged or does not fit its cache or encoder."""


class HubError(JziError):
    """A repository of the Hugging Face hub cannot be read or written, or holds something else."""


class RerankError(JziError):
    """A judge cannot be loaded or does not answer, or judgments cannot be kept."""


class ExportError(JziError):
    """A file with locations cannot be written."""


class TrainingError(JziError):
    """There are no photos to train on, or training failed."""


def first_line(error: BaseException) -> str:
    """First line of the message of another library's error, to quote it; with the next line if it ends with a colon.

    At most 300 characters. Of Faiss's errors the reason, without the C++ function and the condition that failed.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    text = re.sub(r"^Error in .{1,2000}? at \S{1,400}:\d+: (Error: '.{1,400}?' failed: )?", "", text)
    if of_file := re.match(r"(read|write) error in .{1,4000}: \d+ != \d+ \((.{1,200})\)$", text):
        text = of_file[2] if of_file[1] == "write" else "it is shorter than it says"
    return text if len(text) <= 300 else f"{text[:300]}..."
