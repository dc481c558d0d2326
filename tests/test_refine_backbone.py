"""ConvNeXt branches: their initial weights, and that they compute what transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ConvNextConfig, ConvNextModel

from jzi.errors import EncoderError
from jzi.refine import UnifyGeo, UnifyGeoConfig
from jzi.refine.networks.backbone import ConvNextBlock

CONFIG = UnifyGeoConfig(
    ground_height=64, ground_width=128, photo_width=64, aerial=64, widths=(8, 16, 24, 32), depths=(1, 2, 1), bins=8
)
TINY = {"depths": [1, 2, 1, 3], "hidden_sizes": [8, 16, 24, 32], "layer_scale_init_value": 0.5}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("convnext")
    model = ConvNextModel(ConvNextConfig(**TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def test_branches_compute_what_transformers_does(pretrained: Path) -> None:
    model, reference = UnifyGeo(CONFIG), ConvNextModel.from_pretrained(pretrained).eval()
    model.load_pretrained(pretrained)
    pixels = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        features = reference.embeddings(pixels)
        expected = [features := stage(features) for stage in reference.encoder.stages[:3]]
        last = reference.encoder.stages[3]
        for layer in last.downsampling_layer:
            features = layer(features)
        head = last.layers[0](features)
        for branch in (model.ground_branch, model.aerial_branch):
            actual = branch(pixels)
            for one, other in zip(actual.maps, [head, *expected[::-1]], strict=True):
                assert torch.allclose(one, other, atol=1e-5)
            assert torch.allclose(actual.semantic, head, atol=1e-5)
            assert torch.equal(branch.semantic(pixels), actual.semantic)


def test_heads_and_branches_share_no_weights(pretrained: Path) -> None:
    model = UnifyGeo(CONFIG)
    model.load_pretrained(pretrained)
    parts = [part for branch in (model.ground_branch, model.aerial_branch) for part in branch.children()]
    pointers = [parameter.data_ptr() for part in parts for parameter in part.parameters()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize("changes", [{"widths": (8, 16, 24, 40)}, {"depths": (1, 2, 2)}, {"head_blocks": 4}])
def test_a_convnext_of_another_size_is_refused(pretrained: Path, changes: dict) -> None:
    with pytest.raises(EncoderError, match=r"which do not fit refine\.widths and refine\.depths"):
        UnifyGeo(replace(CONFIG, **changes)).load_pretrained(pretrained)


def test_other_models_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="'dinov2' model, but UnifyGeo is made of a ConvNeXt"):
        UnifyGeo(CONFIG).load_pretrained(encoder_folder)
    with pytest.raises(EncoderError, match="cannot be downloaded"):
        UnifyGeo(CONFIG).load_pretrained(tmp_path / "nothing")


def test_padding_is_circular_for_rings_alone() -> None:
    torch.manual_seed(0)
    block, features = ConvNextBlock(4, 1.0), torch.randn(3, 4, 6, 5)
    ring = torch.tensor([True, False, True])
    with torch.no_grad():
        mixed = block(features, ring)
        assert torch.allclose(mixed[1], block(features)[1], atol=1e-6)
        tiled = block(features.repeat(1, 1, 1, 3))[..., 5:10]  # 3 columns of context on both sides are real ones
        assert torch.allclose(mixed[ring], tiled[ring], atol=1e-6)
        assert not torch.allclose(mixed[1], tiled[1], atol=1e-3)
