"""The decoder equals the reference, in one pass and step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.packed import PackedDecoder
from jzi.errors import ConfigError


def packed(decoder: ZoomDecoder, query: torch.Tensor, tiles: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return step_by_step(PackedDecoder(decoder, tiles.shape[1]), query, tiles, actions)


def step_by_step(
    decoder: ZoomDecoder | PackedDecoder, query: torch.Tensor, tiles: torch.Tensor, actions: torch.Tensor
) -> torch.Tensor:
    logits, past = decoder.prefill(query, tiles[:, 0])
    steps = [logits]
    for step in range(1, tiles.shape[1]):
        logits, past = decoder.step(actions[:, step - 1], tiles[:, step], past)
        steps.append(logits)
    return torch.stack(steps, 1)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, tiles = torch.randn(5, 32, generator=generator), torch.randn(5, 4, 32, generator=generator)
    return query, tiles, torch.randint(16, (5, 4), generator=generator)


@pytest.mark.parametrize(
    "run", [ZoomDecoder.__call__, step_by_step, packed], ids=["one pass", "step by step", "packed"]
)
def test_logits_are_those_of_the_reference(shared: Path, run) -> None:
    checkpoint = torch.load(shared / "reference-model" / "checkpoint.pth", weights_only=True)["model_state_dict"]
    case = load_file(shared / "reference-model" / "case.safetensors")
    decoder = ZoomDecoder(DecoderConfig(width=96, layers=3, heads=4)).eval()
    weights = {name.removeprefix("decoder."): v for name, v in checkpoint.items() if name.startswith("decoder.")}
    weights.pop("freqs")  # rotary frequencies, which follow from the width
    decoder.load_state_dict(weights)
    with torch.no_grad():
        logits = run(decoder, case["ground_embedding"], case["satellite_embedding"], case["actions"])
    torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)


def test_stepping_with_the_cache_equals_one_pass(batch) -> None:
    decoder = ZoomDecoder(DecoderConfig(width=32, layers=2, heads=4)).eval()
    torch.testing.assert_close(step_by_step(decoder, *batch), decoder(*batch), atol=1e-5, rtol=1e-5)


def test_search_in_bfloat16_is_near_and_not_equal(batch) -> None:
    decoder = ZoomDecoder(DecoderConfig(width=32, layers=2, heads=4)).eval()
    exact, (query, tiles, actions) = decoder(*batch).detach(), batch
    rounded = step_by_step(PackedDecoder(decoder, tiles.shape[1], "bfloat16"), query, tiles, actions)
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).abs() / exact.std()
    assert 1e-4 < float(difference.max()) < 0.05


def test_an_unknown_precision_of_search_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no precision 'int8'.*float32 or bfloat16"):
        PackedDecoder(ZoomDecoder(DecoderConfig(width=32, layers=1, heads=4)), 3, "int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("patch_tokens", [0, 3])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_packed_decoder_equals_the_one_it_is_made_from(batch, patch_tokens, blocks) -> None:
    config = DecoderConfig(width=32, layers=blocks, heads=4, patch_tokens=patch_tokens)
    decoder = ZoomDecoder(config).eval()
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 2.0)
    query, tiles, actions = batch
    if patch_tokens:
        tiles = torch.randn(5, 4, 1 + patch_tokens, 32, generator=torch.Generator().manual_seed(1))
    expected = decoder(query, tiles, actions)
    torch.testing.assert_close(packed(decoder, query, tiles, actions), expected, atol=1e-5, rtol=1e-5)


def test_a_step_does_not_see_what_comes_after_it(batch) -> None:
    decoder = ZoomDecoder(DecoderConfig(width=32, layers=2, heads=4)).eval()
    query, tiles, actions = batch
    before = decoder(query, tiles, actions)
    tiles, actions = tiles.clone(), actions.clone()
    tiles[:, 2:] += 1
    actions[:, 1:] = (actions[:, 1:] + 1) % 16
    after = decoder(query, tiles, actions)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_the_feed_forward_is_as_wide_as_the_reference_says() -> None:
    assert [DecoderConfig(width=width).hidden for width in (96, 384, 768, 1024)] == [256, 256, 512, 768]


def test_no_part_has_a_bias() -> None:
    decoder = ZoomDecoder(DecoderConfig(width=32, heads=4))
    assert not [name for name, _ in decoder.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"heads": 32}, {"layers": 0}, {"dropout": 1.0}], ids=str)
def test_an_architecture_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ZoomDecoder(DecoderConfig(width=32, **wrong))


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"layers": "6"}, {"patch_tokens": -1}, {"dropout": -0.1}], ids=str)
def test_a_setting_out_of_range_is_one_sentence_with_its_name_and_value(wrong: dict) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"decoder.{name} = {value!r} has no sensible value") as error:
        DecoderConfig(**wrong)
    assert "\n" not in str(error.value)
