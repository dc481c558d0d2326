"""What can go wrong that a user can mend. Each error is one sentence: what, with the value seen, and what to do."""


class JziError(Exception):
    """Base of all errors that the command line turns into one sentence and exit code 2."""


class ConfigError(JziError):
    """A setting is missing, unknown or has no sensible value."""


class PyramidError(JziError):
    """The area of interest cannot be described: bad CRS, size, grid or levels."""


class ImageryError(JziError):
    """A raster cannot be read, has no georeference, or does not touch the area."""


class PhotoError(JziError):
    """A photo cannot be used: unreadable, truncated, or too large."""


class PhotoTableError(JziError):
    """A table or folder of photos cannot be used at all."""


class EncoderError(JziError):
    """An encoder cannot be loaded or is of a kind that jzi does not know."""


class CacheError(JziError):
    """A feature cache is absent, incomplete or cannot be written."""


class CacheMismatchError(CacheError):
    """A feature cache belongs to another encoder, pyramid or imagery."""


class CacheCorruptError(CacheError):
    """A chunk of a feature cache does not match its checksum."""


class ModelError(JziError):
    """A model folder is absent, incomplete or does not fit what it is used with."""


class ExportError(JziError):
    """A file with answers cannot be written."""


class TrainingError(JziError):
    """There is nothing to train on, or training broke down."""


def first_line(error: BaseException) -> str:
    """What another library says, as part of a sentence."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
