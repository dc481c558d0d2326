"""The encoder of a model: from its folder, every file verified, or from the hub, its weights compared."""

from __future__ import annotations

from pathlib import Path

from jzi.encode.encoder import Encoder
from jzi.errors import ModelError
from jzi.store.model_folder import ModelConfig, verify_encoder


def load_model_encoder(folder: Path, config: ModelConfig, device: str | None = None) -> Encoder:
    """Load the encoder of a model.

    The weights of an encoder in the folder are not hashed again once its files have been verified.

    Args:
        folder: the model folder.
        config: what its config.json records.
        device: where to compute; by default the best there is.

    Raises:
        EncoderError: it cannot be loaded.
        ModelError: the folder lacks it, a file of it is damaged, or the hub has another one by now.
    """
    info, own = config.encoder, verify_encoder(folder, config)
    options = {"image_size": info.image_size, "layout": info.layout, "device": device}
    if own is not None:
        return Encoder.load(own, **options, fingerprint=info.fingerprint)  # type: ignore[arg-type]
    encoder = Encoder.load(info.name, **options)  # type: ignore[arg-type]
    if encoder.fingerprint != info.fingerprint:
        raise ModelError(
            f"{folder} was trained with the encoder {info.label}, and {info.name} now is {encoder.info.label}: bring "
            "that encoder back or train anew"
        )
    return encoder
