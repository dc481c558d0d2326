"""Limits of the service: what one request and all of them together may cost."""

from __future__ import annotations

from dataclasses import dataclass

from jzi.errors import ConfigError, JziError

#: Largest region of a prior, bytes: GeoJSON of about 25 000 corners.
REGION_BYTES = 1_000_000

#: Memory that decoding takes per pixel, bytes: 20 were measured for PNG with an alpha channel, WebP and float TIFF, 12
#: for JPEG and PNG in colour.
BYTES_PER_PIXEL = 20


@dataclass(frozen=True)
class Limits:
    """Limits on requests, and the confidence below which the service is not sure.

    Memory beyond that of the model is at most about `waiting_mb`, and `BYTES_PER_PIXEL` for each of `megapixels`: the
    photos that are decoded at the same time have at most that many pixels together.

    Attributes:
        megabytes: largest request body, MB (10^6 bytes).
        megapixels: largest image, and all images that are decoded at the same time, megapixels.
        abstain: answers below this confidence (0..1) are "not sure"; a request may give its own.
        queue: photos that wait for the model; further requests are refused with status 503.
        waiting_mb: all photos that are being received or wait, MB; further requests are refused with status 503.
        upload_s: seconds for a request body to arrive.
        stalled_s: seconds without a byte of it.
        shutdown_s: seconds for open requests when the service is stopped; those that are left are refused.

    Raises:
        ConfigError: a number is not positive, or no photo of the largest size may wait.
    """

    megabytes: float = 20.0
    megapixels: float = 60.0
    abstain: float = 0.0
    queue: int = 256
    waiting_mb: float = 256.0
    upload_s: float = 60.0
    stalled_s: float = 10.0
    shutdown_s: float = 5.0

    def __post_init__(self) -> None:
        positive = {name: value for name, value in vars(self).items() if name != "abstain"}
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"the service's limit {name} must be a number above 0, not {value}")
        if not 0 <= self.abstain <= 1:
            raise ConfigError(f"the service's limit abstain must lie between 0 and 1, not {self.abstain}")
        if self.waiting_mb < self.megabytes:
            raise ConfigError(
                f"{self.waiting_mb:g} MB for photos that wait are less than the {self.megabytes:g} MB of the largest "
                "photo: raise the first or lower the second"
            )


class RefusedError(JziError):
    """A request that the service does not answer.

    Args:
        status: HTTP status.
        detail: one sentence.
        retry_after: seconds after which the client may try again; None if that would not help.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.retry_after = status, retry_after


class StoppingError(RefusedError):
    """A request that the end of the service leaves open."""

    def __init__(self) -> None:
        super().__init__(503, "the service is stopping: try again when it is back", 10)
