"""The zoom decoder prepared for search: the weights fused and packed once, keys and values gathered once a step.

Compared with `ZoomDecoder`, which training uses, the results are equal up to rounding. The weights of norms are part of
the matrices that follow them, matrices with the same input are one, the features of a head are in another order, and
the last block computes only what the logits need. Products of the blocks can be computed in bfloat16; what is added up
between them, norms, attention and logits stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from jzi.decode.config import Precision
from jzi.decode.decoder import Block, ZoomDecoder, rotary
from jzi.errors import ConfigError

Linear = Callable[[Tensor], Tensor]

#: Rows that the layout of packed weights is chosen for; measured to serve 2 to 512 rows alike.
ROWS = 128

#: Of the norms of `ZoomDecoder`.
EPS = 1e-6


class PackedKeyValues:
    """Keys and values of the tokens read so far.

    Args:
        buffer: (row, block, token, 2, head, feature of a head) with room for the tokens of all steps.
        tokens: number of tokens read so far.
    """

    def __init__(self, buffer: Tensor, tokens: int) -> None:
        self.buffer, self.tokens = buffer, tokens

    def select(self, index: Tensor) -> PackedKeyValues:
        """Select rows of the batch, which may repeat, such as the best hypotheses of a beam.

        Args:
            index: (n,) rows.
        """
        return PackedKeyValues(self.buffer.index_select(0, index), self.tokens)


class PackedDecoder:
    """A decoder for search; changes to the weights of the one it was made from have no effect.

    Args:
        decoder: the decoder.
        steps: number L of steps of the search.
        precision: of the blocks' weights and products; bfloat16 is faster on processors that multiply it themselves
            (AVX-512 with BF16, AMX, GPUs), and slower on others.

    Raises:
        ConfigError: there is no such precision.

    Example:
        >>> from jzi.decode.config import DecoderConfig
        >>> decoder = ZoomDecoder(DecoderConfig(width=64, layers=2)).eval()
        >>> query, tile = torch.randn(3, 64), torch.randn(3, 64)
        >>> logits, _ = PackedDecoder(decoder, steps=2).prefill(query, tile)
        >>> bool(torch.allclose(logits, decoder.prefill(query, tile)[0], atol=1e-5))
        True
    """

    @torch.inference_mode()
    def __init__(self, decoder: ZoomDecoder, steps: int, precision: Precision = "float32") -> None:
        self.config = config = decoder.config
        weight = decoder.output_head.weight
        self.device = weight.device
        pack = _packing(self.device, precision)
        half = config.width // config.heads // 2
        self.shape = config.heads, 2 * half
        self.capacity = steps * (2 + config.patch_tokens)
        cos, sin = rotary(self.capacity, 0, 2 * half, torch.device("cpu"))
        turns = torch.complex(cos[:, :half], sin[:, half:])[:, None, None]
        self.rotary = turns.to(self.device)  # (token, 1, 1, half)
        self.action_embed = decoder.action_embed.weight.detach().float().clone()
        last = len(decoder.blocks) - 1
        self.blocks = [
            _PackedBlock(cast(Block, block), config.heads, pack, index == last)
            for index, block in enumerate(decoder.blocks)
        ]
        self.head = _plain(_float(weight) * _float(decoder.final_norm.weight))

    def prefill(self, query: Tensor, tile: Tensor) -> tuple[Tensor, PackedKeyValues]:
        """As `ZoomDecoder.prefill`."""
        shape = len(query), len(self.blocks), self.capacity, 2, *self.shape
        return self._step(query, tile, PackedKeyValues(torch.empty(shape, device=self.device), 0))

    def step(self, action: Tensor, tile: Tensor, past: PackedKeyValues) -> tuple[Tensor, PackedKeyValues]:
        """As `ZoomDecoder.step`; writes into the buffer of `past`."""
        return self._step(self.action_embed[action], tile, past)

    def _step(self, before: Tensor, tile: Tensor, past: PackedKeyValues) -> tuple[Tensor, PackedKeyValues]:
        tile = tile if tile.ndim == 3 else tile[:, None]
        x = torch.cat([before[:, None], tile], dim=1)  # (row, token, feature)
        first, tokens = past.tokens, past.tokens + x.shape[1]
        mask = None
        if first:
            mask = torch.ones(x.shape[1], tokens, dtype=torch.bool, device=x.device).tril(first)
        for index, block in enumerate(self.blocks):
            x = block(x, past.buffer[:, index, :tokens], first, self.rotary[first:tokens], mask)
        return self.head(_norm(x[:, -1])), PackedKeyValues(past.buffer, tokens)


class _PackedBlock:
    """A block; the last one computes the last token alone."""

    def __init__(self, block: Block, heads: int, pack: Callable[[Tensor], Linear], is_last: bool) -> None:
        attention, ffn = block.self_attn, block.ffn
        norm1, norm2 = _float(block.norm1.weight), _float(block.norm2.weight)
        q, k = (_paired(_float(part.weight), heads) for part in (attention.q_proj, attention.k_proj))
        v = _float(attention.v_proj.weight)
        self.is_last, self.heads = is_last, heads
        if is_last:
            self.query, self.key_value = pack(q * norm1), pack(torch.cat([k, v]) * norm1)
        else:
            self.query_key_value = pack(torch.cat([q, k, v]) * norm1)
        self.out = pack(_float(attention.out_proj.weight))
        self.gate_up = pack(torch.cat([_float(ffn.w1.weight), _float(ffn.w3.weight)]) * norm2)
        self.down = pack(_float(ffn.w2.weight))

    def __call__(self, x: Tensor, past: Tensor, first: int, rotary: Tensor, mask: Tensor | None) -> Tensor:
        """Read (row, token, feature) tokens; `past` is (row, token, 2, head, feature), of which they fill the end."""
        h = _norm(x)
        if self.is_last:
            x, rotary_q = x[:, -1:], rotary[-1:]
            q = _turn(self._split(self.query(h[:, -1:]), 1), rotary_q)
            k, v = self._split(self.key_value(h), 2).split(1, dim=2)
            k, mask, causal = _turn(k, rotary), None, False
        else:
            qk, v = self._split(self.query_key_value(h), 3).split([2, 1], dim=2)
            q, k = _turn(qk, rotary).split(1, dim=2)
            causal = mask is None
        past[:, first:, :1], past[:, first:, 1:] = k, v
        key, value = (each.transpose(1, 2) for each in past.unbind(2))
        attended = F.scaled_dot_product_attention(
            q.squeeze(2).transpose(1, 2), key, value, attn_mask=mask, is_causal=causal
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(row, token, part, head, feature of a head)."""
        return x.view(*x.shape[:2], parts, self.heads, -1)


def _float(weight: Tensor) -> Tensor:
    return weight.detach().float()


def _norm(x: Tensor) -> Tensor:
    """RMS norm without weight."""
    return x * (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + EPS).rsqrt()


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Interleave the halves of each head, so that the features that are rotated together are one complex number."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _turn(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate (row, token, part, head, feature) by (token, 1, 1, pair)."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary).flatten(-2)


def _packing(device: torch.device, precision: Precision) -> Callable[[Tensor], Linear]:
    if precision not in get_args(Precision):
        raise ConfigError(f"there is no precision {precision!r} of search: it is float32 or bfloat16")
    own = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return partial(_onednn if own else _plain, precision=getattr(torch, precision))


def _plain(weight: Tensor, precision: torch.dtype = torch.float32) -> Linear:
    weight = weight.to(precision)
    return lambda x: F.linear(x.to(precision), weight).float()


def _onednn(weight: Tensor, precision: torch.dtype) -> Linear:
    """Pack a weight for oneDNN, as PyTorch's compiler does with frozen weights."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(precision).contiguous(), ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(precision), packed, None, "none", [], "").float()
