"""Load the encoder of a model, from the model folder or from the Hugging Face hub, and verify it."""

from __future__ import annotations

from pathlib import Path

from jzi.encode.encoders.encoder import Encoder
from jzi.errors import ModelError
from jzi.store.model_config import ModelConfig
from jzi.store.model_folder import verify_encoder


def load_model_encoder(folder: Path, config: ModelConfig, device: str | None = None) -> Encoder:
    """Load the encoder that a model was trained with.

    An encoder in the folder is verified by the checksums of its files, one from the hub by its fingerprint.

    Args:
        folder: the model folder.
        config: its config.json.
        device: device to compute on; `best_device()` by default.

    Returns:
        The encoder.

    Raises:
        EncoderError: the encoder cannot be loaded.
        ModelError: the encoder is missing in the folder or damaged, or the hub's model has changed.
    """
    info, encoder_folder = config.encoder, verify_encoder(folder, config)
    options = {"image_size": info.image_size, "layout": info.layout, "resampling": info.resampling, "device": device}
    if encoder_folder is not None:  # verified, so its recorded fingerprint holds
        return Encoder.load(encoder_folder, **options, fingerprint=info.fingerprint)  # type: ignore[arg-type]
    encoder = Encoder.load(info.name, **options)  # type: ignore[arg-type]
    if encoder.fingerprint != info.fingerprint:
        raise ModelError(
            f"{folder} was trained with the encoder {info.label}, but {info.name} is now {encoder.info.label}: restore "
            "that encoder or train a new model"
        )
    return encoder
