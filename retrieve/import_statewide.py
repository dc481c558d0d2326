"""Convert weights of the authors' implementation of Fervers et al. 2024 to a state-wide retriever's folder.

The authors' code (github.com/fferflo/statewide-visual-geolocalization, JAX and Flax) saves all parameters to one
safetensors file, `weights/last.safetensors`, with names of nested modules joined by "//", such as
`params//pv_encoder//Stage_0//Block_0//_Linear_0//weight`. Modules of einx have an underscore before their name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from jzi.encode.encoders.families import IMAGENET
from jzi.encode.encoders.hf_model import LoadedModel, quiet_transformers
from jzi.encode.encoders.towers import Tower, Towers, TowersConfig
from jzi.errors import ConfigError, ModelError, first_line
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.info import MAX_WIDTH
from jzi.store.model_config import CONFIG
from jzi.store.tensors import Shape, check_entries, check_finite

#: Modules of the authors' model by tower; "pv" is the perspective view, of photos.
_ENCODERS = {"photo": "pv_encoder", "map": "aerial_encoder"}
_POOLINGS = {"photo": "pv_decoder", "map": "aerial_decoder"}

#: Largest number of stages and of blocks of a stage.
_MAX_STAGES, _MAX_BLOCKS = 8, 128

#: Types of the entries, by the names of safetensors.
_FLOATS = ("F32", "F16", "BF16")

#: The authors' images are white where there is no imagery, and were in training.
WHITE = (255, 255, 255)


class _Entry(NamedTuple):
    """A parameter: its name there and here, and how its axes change."""

    there: str
    here: str
    axes: tuple[int, ...] | None = None


#: Axes of Flax' convolution kernels, (row, col, input, output), in torch's order; and of a matrix (input, output).
_CONVOLUTION, _MATRIX = (3, 2, 0, 1), (1, 0)


def import_statewide(checkpoint: Path, folder: Path, *, image_size: int = 384) -> StatewideRetriever:
    """Convert the authors' weights to a retriever's folder.

    Encoders are ConvNeXts whose GELU is approximated by tanh, as Flax does; their depths and channels, the width and
    the heads are those of the entries. Levels of detail, the size of photos and the scale, which the file does not
    record, are the published ones; the background of cells is white.

    Args:
        checkpoint: safetensors file.
        folder: the retriever's folder to create.
        image_size: side of an image of a cell that it was trained with, pixels.

    Returns:
        The retriever.

    Raises:
        ModelError: the file cannot be read or does not fit, or the folder holds a model already.
        ConfigError: the image size is out of range.
    """
    if (folder / CONFIG).exists():
        raise ModelError(f"{folder} holds a model already: give another folder")
    quiet_transformers()
    shapes = _read_shapes(checkpoint)
    configs = {name: _encoder_config(checkpoint, shapes, f"params//{part}//") for name, part in _ENCODERS.items()}
    config = _towers_config(checkpoint, shapes, image_size)
    try:
        with torch.device("meta"):
            expected = _shapes_there(Towers(*_models(configs), config, device="meta"))
    except ConfigError as error:  # the width and the heads of the file
        raise ModelError(f"{checkpoint} does not fit a model that can be imported: {error}") from error
    check_entries(checkpoint, shapes, expected, "the authors' model of two ConvNeXts and attention pooling")
    weights = _read(checkpoint)
    check_finite(checkpoint, weights)
    towers = Towers(*_models(configs), config, device="cpu")
    for name, tower in _towers(towers):
        entries = list(_entries(name, tower))
        state = {each.here: _converted(weights.pop(each.there), each.axes) for each in entries}
        tower.load_state_dict(state)
    return StatewideRetriever.save(folder, towers, method="statewide", area=f"imported from {checkpoint.name:.900}")


def _read_shapes(checkpoint: Path) -> dict[str, Shape]:
    """Shapes of all entries, by their names with underscores; no tensor is read."""
    if not checkpoint.is_file():
        raise ModelError(f"there is no checkpoint {checkpoint}")
    shapes: dict[str, Shape] = {}
    try:
        with safe_open(checkpoint, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                entry = file.get_slice(name)
                if entry.get_dtype() not in _FLOATS:
                    raise ModelError(
                        f"{checkpoint} has {name:.200} of type {entry.get_dtype()}, not {', '.join(_FLOATS)}: give the "
                        "weights of the authors' training, last.safetensors"
                    )
                shapes[_underscored(name)] = tuple(entry.get_shape())
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{checkpoint} cannot be read as a safetensors file ({first_line(error)})") from error
    return shapes


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """All entries in float32."""
    try:
        return {_underscored(name): tensor.float() for name, tensor in load_file(checkpoint).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{checkpoint} cannot be read as a safetensors file ({first_line(error)})") from error


def _underscored(name: str) -> str:
    """The name with the underscores that einx gives its modules, whichever version saved it."""
    return re.sub(r"//(?=(?:Norm|Linear)_\d)", "//_", name)


def _encoder_config(checkpoint: Path, shapes: Mapping[str, Shape], prefix: str) -> Any:
    """The ConvNeXt that the entries belong to; entries that are missing are reported later."""
    from transformers import ConvNextConfig

    pattern = re.compile(re.escape(prefix) + r"Stage_(\d{1,4})//Block_(\d{1,4})//")
    blocks = [(int(match[1]), int(match[2])) for name in shapes if (match := pattern.match(name))]
    stages = max((stage for stage, _ in blocks), default=-1) + 1
    depths = [max((block for other, block in blocks if other == stage), default=0) + 1 for stage in range(stages)]
    channels = [_channels(shapes, f"{prefix}Stage_{stage}//Block_0//") for stage in range(stages)]
    if not (1 <= stages <= _MAX_STAGES and max(depths) <= _MAX_BLOCKS and max(channels) <= MAX_WIDTH):
        raise ModelError(
            f"{checkpoint} does not fit a ConvNeXt: {prefix} has {stages} stages of {str(depths)[1:-1]:.60} blocks and "
            f"{str(channels)[1:-1]:.60} channels; give the weights of the authors' training, last.safetensors"
        )
    return ConvNextConfig(
        depths=depths, hidden_sizes=channels, num_stages=stages, hidden_act="gelu_pytorch_tanh", drop_path_rate=0.0
    )


def _channels(shapes: Mapping[str, Shape], block: str) -> int:
    """Channels of a block, by whichever of its entries there is."""
    for name in ("Conv_0//kernel", "Conv_0//bias", "_Norm_0//scale", "_Norm_0//bias", "scale"):
        if shape := shapes.get(block + name):
            return max(1, shape[-1])
    return 1


def _towers_config(checkpoint: Path, shapes: Mapping[str, Shape], image_size: int) -> TowersConfig:
    pooling = "params//pv_decoder//"
    heads, width = (shapes.get(f"{pooling}_Linear_{index}//weight", ())[-1:] for index in (0, 1))
    if not heads or not width:
        raise ModelError(
            f"{checkpoint} does not fit the authors' attention pooling: it lacks {pooling}_Linear_0//weight or "
            f"{pooling}_Linear_1//weight; give the weights of the authors' training, last.safetensors"
        )
    if not (1 <= heads[0] <= 1024 and 1 <= width[0] <= MAX_WIDTH):
        raise ModelError(f"{checkpoint} has {heads[0]} heads and {width[0]} features: that is out of range")
    name = f"{checkpoint.name:.4000}"
    return TowersConfig(
        photo_model=name, map_model=name, width=width[0], heads=heads[0], image_size=image_size, background=WHITE
    )


def _models(configs: Mapping[str, Any]) -> tuple[LoadedModel, LoadedModel]:
    from transformers import ConvNextModel

    loaded = []
    for name in _ENCODERS:
        model = ConvNextModel(configs[name])
        # The final layernorm follows the mean of all tokens, which these towers do not take
        model.layernorm = nn.Identity()  # type: ignore[assignment]
        loaded.append(LoadedModel(model, False, *IMAGENET))
    return loaded[0], loaded[1]


def _towers(towers: Towers) -> list[tuple[str, Tower]]:
    return [("photo", towers.photo_tower), ("map", towers.map_tower)]


def _shapes_there(towers: Towers) -> dict[str, Shape]:
    """Shapes of all entries of the authors' file for these towers."""
    shapes: dict[str, Shape] = {}
    for name, tower in _towers(towers):
        own = tower.state_dict()
        for there, here, axes in _entries(name, tower):
            shape = tuple(own.pop(here).shape)
            shapes[there] = shape if axes is None else tuple(shape[axes.index(axis)] for axis in range(len(axes)))
        assert not own, own.keys()
    return shapes


def _converted(tensor: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    return tensor if axes is None else tensor.permute(axes)


def _entries(name: str, tower: Tower) -> Iterator[_Entry]:
    """Names of a tower's parameters there and here."""
    config: Any = tower.encoder.config
    encoder, pooling = f"params//{_ENCODERS[name]}//", f"params//{_POOLINGS[name]}//"
    yield from _convolution(f"{encoder}Stem_0//Conv_0", "encoder.embeddings.patch_embeddings")
    yield from _norm(f"{encoder}Stem_0//_Norm_0", "encoder.embeddings.layernorm")
    for stage, depth in enumerate(config.depths):
        own = f"encoder.encoder.stages.{stage}"
        if stage:
            down = f"{encoder}Downsample_{stage - 1}//"
            yield from _norm(f"{down}_Norm_0", f"{own}.downsampling_layer.0")
            yield from _convolution(f"{down}Conv_0", f"{own}.downsampling_layer.1")
        for block in range(depth):
            there, here = f"{encoder}Stage_{stage}//Block_{block}//", f"{own}.layers.{block}"
            yield from _convolution(f"{there}Conv_0", f"{here}.dwconv")
            yield from _norm(f"{there}_Norm_0", f"{here}.layernorm")
            yield from _linear(f"{there}_Linear_0", f"{here}.pwconv1")
            yield from _linear(f"{there}_Linear_1", f"{here}.pwconv2")
            yield _Entry(f"{there}scale", f"{here}.layer_scale_parameter")
    yield from _norm(f"{pooling}_Norm_0", "pooling.norm")
    yield _Entry(f"{pooling}_Linear_0//weight", "pooling.score.weight", _MATRIX)
    yield from _linear(f"{pooling}_Linear_1", "pooling.value")


def _convolution(there: str, here: str) -> Iterator[_Entry]:
    yield _Entry(f"{there}//kernel", f"{here}.weight", _CONVOLUTION)
    yield _Entry(f"{there}//bias", f"{here}.bias")


def _norm(there: str, here: str) -> Iterator[_Entry]:
    yield _Entry(f"{there}//scale", f"{here}.weight")
    yield _Entry(f"{there}//bias", f"{here}.bias")


def _linear(there: str, here: str) -> Iterator[_Entry]:
    yield _Entry(f"{there}//weight", f"{here}.weight", _MATRIX)
    yield _Entry(f"{there}//bias", f"{here}.bias")
