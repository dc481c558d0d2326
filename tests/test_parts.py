"""Claims about batches that are computed in parts, one core each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from jzi.encode.encoders import parts
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.parts import LEAST_FLOP, in_parts


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_batch_in_parts_is_embedded_as_its_images_are_one_by_one(
    encoder: Encoder, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "LEAST_FLOP", 1.0)
    size = encoder.image_size
    tiles = np.random.default_rng(0).integers(0, 256, (7, size, size, 3), dtype=np.uint8)
    alone = [encoder.encode_tiles_and_patches(tile[None]) for tile in tiles]
    embedding, patches = encoder.encode_tiles_and_patches(tiles)
    torch.testing.assert_close(embedding, torch.cat([each for each, _ in alone]))
    torch.testing.assert_close(patches, torch.cat([each for _, each in alone]))
    torch.testing.assert_close(encoder.encode_tiles(tiles), embedding)


def test_each_core_computes_a_part_without_further_threads(three_threads: None) -> None:
    seen = []

    def record(images: torch.Tensor) -> tuple[torch.Tensor]:
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        seen.append((len(images), threading.current_thread().name, torch.get_num_threads(), modes))
        return (images,)

    with torch.no_grad():
        (same,) = in_parts(record, torch.arange(7), LEAST_FLOP)
    assert same.tolist() == list(range(7))
    assert sorted(count for count, *_ in seen) == [2, 2, 3]
    assert all("jzi-encode" in name and threads == 1 for _, name, threads, _ in seen)
    assert {modes for *_, modes in seen} == {(False, False)}
    assert torch.get_num_threads() == 3
    seen.clear()
    with torch.inference_mode():
        in_parts(record, torch.arange(7), LEAST_FLOP)
    assert {modes for *_, modes in seen} == {(False, True)}


def test_what_has_gradients_or_is_small_is_computed_as_a_whole(three_threads: None) -> None:
    sizes = []

    def record(images: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.append(len(images))
        return (images,)

    in_parts(record, torch.arange(7), LEAST_FLOP)
    with torch.no_grad():
        in_parts(record, torch.arange(5), LEAST_FLOP / 2)
        in_parts(record, torch.arange(7, device="meta"), LEAST_FLOP)
    assert sizes == [7, 5, 7]


def test_an_error_of_a_part_is_raised(three_threads: None) -> None:
    def fail(images: torch.Tensor) -> tuple[torch.Tensor]:
        raise MemoryError(f"no room for {len(images)} images")

    with torch.no_grad(), pytest.raises(MemoryError, match="no room for 3 images"):
        in_parts(fail, torch.arange(7), LEAST_FLOP)
