"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) in plain torch, with and without registers (arXiv 2309.16588).

Transformers takes longer to import than torch itself; what this file supports is run without it. Modules, parameters
and results are those of transformers' `Dinov2Model` and `Dinov2WithRegistersModel`, to the last bit on a CPU, so that
fingerprints, caches and unfinished runs do not depend on which of the two runs a checkpoint. Whatever is unusual in a
config (activations, dropout, entries unknown here) is left to transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jzi.encode.device import shapes_only
from jzi.store.disk.files import write_whole

#: File with the weights in an encoder's folder.
WEIGHTS = "model.safetensors"

#: Entries of config.json that say where it came from, without effect on the model.
_ORIGIN = {"architectures", "transformers_version", "_name_or_path"}

#: Entries that name the type of the stored weights, and those types.
_DTYPES, _DTYPE_NAMES = {"dtype", "torch_dtype"}, ("float32", "float16", "bfloat16")

#: Entries that must have these values, those of all published checkpoints.
_FIXED = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
    "drop_path_rate": 0,
    "num_channels": 3,
}

#: Parts of names of weights in files, which are those of the first release, and the names of the modules.
_RENAMED = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
    "mlp.weights_out.": "mlp.down_proj.",
}

#: SwiGLU's first layer: one in files, and the two modules that it is split into.
_JOINT, _SPLIT = "mlp.weights_in.", ("mlp.gate_proj.", "mlp.up_proj.")


@dataclass(frozen=True)
class Dinov2Config:
    """The entries of config.json that transformers' config of the model has, under the same names."""

    model_type: str = "dinov2"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    use_mask_token: bool = True
    num_register_tokens: int = 0

    @classmethod
    def from_entries(cls, entries: dict[str, Any]) -> Self | None:
        """Return the config that config.json describes; None if that takes transformers.

        Args:
            entries: of config.json.
        """
        registers = entries.get("model_type") == "dinov2_with_registers"
        if not registers and entries.get("model_type") != "dinov2":
            return None
        defaults = {"num_register_tokens": 4, "patch_size": 16} if registers else {}
        absent = {"use_mask_token"} if registers else {"num_register_tokens"}
        types = {field.name: type(field.default) for field in fields(cls) if field.name not in absent}
        known = {name: value for name, value in entries.items() if name in types}
        config = cls(**{**defaults, **known})
        if any(
            type(known[name]) is not types[name] and not (name in _FIXED and known[name] == _FIXED[name])
            for name in known
        ):
            return None
        if any(getattr(config, name) != value for name, value in _FIXED.items()):
            return None
        stages = config._stages()
        others = {name: value for name, value in entries.items() if name not in types and name not in _ORIGIN}
        usual = all(
            value in _DTYPE_NAMES if name in _DTYPES else name in stages and value == stages[name]
            for name, value in others.items()
        )
        return config if usual else None

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what transformers' method of this name does, which fingerprints are made of."""
        absent = "use_mask_token" if self.model_type == "dinov2_with_registers" else "num_register_tokens"
        return {name: value for name, value in asdict(self).items() if name != absent} | self._stages()

    def _stages(self) -> dict[str, Any]:
        """Entries for backbones of detectors, which follow from the number of layers."""
        stages = [f"stage{layer + 1}" for layer in range(self.num_hidden_layers)]
        return {
            "stage_names": ["stem", *stages],
            "out_features": stages[-1:],
            "out_indices": [self.num_hidden_layers],
        }


class Dinov2(nn.Module):
    """A DINOv2 without head.

    Args:
        config: its config.
    """

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Blocks(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, token, feature) after the final layernorm, [CLS] first, of (n, 3, height, width) pixels."""
        tokens = self.embeddings(pixels)
        for block in self.encoder.layer:
            tokens = block(tokens)
        normed: Tensor = self.layernorm(tokens)
        return normed

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, as the method of this name of transformers does."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parameters = dict(self.state_dict())
        weights = {name: torch.cat([parameters[part] for part in parts]) for name, parts in self._file_names()}
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        write_whole(folder / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
        name = "Dinov2Model" if self.config.model_type == "dinov2" else "Dinov2WithRegistersModel"
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        entries = {"architectures": [name], "dtype": dtype, **self.config.to_diff_dict()}
        text = json.dumps(entries, indent=2, sort_keys=True) + "\n"
        write_whole(folder / "config.json", lambda path: path.write_text(text))

    def _file_names(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Names of weights in files, each with the parameter that it is, or the two that it is split into."""
        gate, up = _SPLIT
        for name in self.state_dict():
            if up in name:
                continue
            if gate in name:
                yield name.replace(gate, _JOINT), (name, name.replace(gate, up))
                continue
            file_name = name
            for stored, own in _RENAMED.items():
                file_name = file_name.replace(own, stored)
            yield file_name, (name,)


def load_dinov2(config: Dinov2Config, file: Path) -> Dinov2 | None:
    """Load a model in float32; weights stored in float32 stay mapped from the file until they are used.

    Args:
        config: its config.
        file: its weights, named as in published checkpoints.

    Returns:
        The model; None if the file is damaged or holds other weights than the config describes: transformers may know
        them, or reports what is wrong.

    Raises:
        OSError: the file cannot be read.
    """
    with shapes_only():
        model = Dinov2(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(file, "pt") as stored:
            names = set(stored.keys())
            for name, parts in model._file_names():
                rows = sum(shapes[part][0] for part in parts)
                if name not in names:
                    if not name.endswith("mask_token"):
                        return None
                    weights[name] = torch.zeros(shapes[name])  # for training only, and absent in some files
                    continue
                names.remove(name)
                piece = stored.get_slice(name)
                if tuple(piece.get_shape()) != (rows, *shapes[parts[0]][1:]) or piece.get_dtype() not in _STORED:
                    return None
                for part, tensor in zip(parts, stored.get_tensor(name).float().chunk(len(parts)), strict=True):
                    weights[part] = tensor
    except SafetensorError:
        return None
    if names:
        return None
    model.load_state_dict(weights, assign=True)
    return model


#: Types of weights in files.
_STORED = ("F32", "F16", "BF16")


class _Embeddings(nn.Module):
    """Patches, with [CLS] before them and positions added, then registers after [CLS]."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.registers = config.model_type == "dinov2_with_registers"
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        self.patch_embeddings = _PatchEmbeddings(config)
        self.side, self.patch = side, config.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), self.patch_embeddings(pixels)], dim=1)
        tokens = tokens + self._positions(pixels.shape[2], pixels.shape[3])
        if not self.registers:
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(len(pixels), -1, -1), tokens[:, 1:]], dim=1)

    def _positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + patch, feature) of an image of this size, interpolated from those of the training size."""
        shape = (height // self.patch, width // self.patch)
        if height == width and shape == (self.side, self.side):
            return self.position_embeddings
        first, others = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = others.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        # Each with the filter of its own reference implementation
        grid = F.interpolate(grid.float(), size=shape, mode="bicubic", antialias=self.registers).to(others.dtype)
        return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class _PatchEmbeddings(nn.Module):
    """A linear layer over the pixels of each patch."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.projection(pixels.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
        return tokens


class _Blocks(nn.Module):
    """The transformer's blocks; named as in checkpoints."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))


class _Block(nn.Module):
    """Pre-norm attention and multilayer perceptron, with scaled outputs."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = _Attention(config)
        self.layer_scale1 = _LayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _SwiGLU(config) if config.use_swiglu_ffn else _MLP(config)
        self.layer_scale2 = _LayerScale(config)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer_scale1(self.attention(self.norm1(tokens))) + tokens
        scaled: Tensor = self.layer_scale2(self.mlp(self.norm2(tokens)))
        return scaled + tokens


class _Attention(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias) for _ in range(3)
        )
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return projected


class _LayerScale(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.layerscale_value))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.lambda1


class _MLP(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(config.hidden_size, hidden), nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return projected


class _SwiGLU(nn.Module):
    """The giant model's perceptron (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = (int(int(config.hidden_size * config.mlp_ratio) * 2 / 3) + 7) // 8 * 8
        self.gate_proj, self.up_proj = nn.Linear(config.hidden_size, hidden), nn.Linear(config.hidden_size, hidden)
        self.down_proj = nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))
        return projected
