"""The version of this package, which files on disk record."""

__version__ = "0.1.0"
