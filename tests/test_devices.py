"""Training steps, search and refinement stay on one device: they run on `meta`, where no value can be read.

A hidden synchronisation (`.item()`, `.tolist()`, `.numpy()`, `.cpu()`, a boolean index) raises there. The mode below
raises where an operation mixes devices, those of indices and embeddings included, which a CPU would accept and a GPU
would not. What is read in the end is read by `to_host`. Fusion is computed on the host, from what was read.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jzi.benchmarks.device import choose_device
from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.packed import PackedDecoder
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS, augment_photos, augment_tiles, drop_parts, jitter_colors, jitter_padded
from jzi.encode.photo.photo_view import PhotoView
from jzi.locate.answer.location import LocateOptions
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.outputs import RefinerOutput
from jzi.refine.photos import PhotoData
from jzi.refine.stage import RefineStage
from jzi.refine.windows.window import Windows
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.vpr import VprConfig, VprExpert
from jzi.tests.test_experts import AREA, ENCODER, MAP, MASK, WIDTH
from jzi.tests.test_refine_model import SMALL, photos
from jzi.train.config.encoders import FinetuneConfig, RetrieverConfig
from jzi.train.config.training import HeadsTrainingConfig, TrainConfig
from jzi.train.decoder import DecoderTask
from jzi.train.encoders.encoder import Part
from jzi.train.encoders.finetune import FinetuneTask
from jzi.train.encoders.networks import ContrastiveEncoder, JointModel
from jzi.train.encoders.retriever import RetrieverTask
from jzi.train.heads import CellsTask, LevelsTask, distinct_tiles
from jzi.train.loop import TrainingLoop
from jzi.train.losses import decoupled_contrast, level_contrast, soft_margin_triplet, symmetric_infonce
from jzi.train.refine.refine_augment import coarsen_images, drop_tokens, jitter_images, turn_windows
from jzi.train.refine.refine_losses import LossWeights, PairTruth, refiner_losses
from jzi.train.run import TrainingRun
from jzi.train.schedule import Schedule

META = torch.device("meta")

#: Operations that copy from the host to the device on purpose.
UPLOADS = ("aten._to_copy.", "aten.copy_.", "aten.to.")

#: Operations that compute nothing on a device, beside those that only view a tensor.
NO_KERNEL = ("aten.detach", "aten._unsafe_view", "aten.empty", "aten.new_empty", "profiler.")

#: Operations of a training step of a decoder of six layers with dropout; 872 when queries and keys were rotated one
#: after the other. On `meta` norms, attention and dropout are composed of several, which are one on a GPU.
MOST = 840


class OneDevice(TorchDispatchMode):
    """Raises where an operation has inputs on several devices, and counts operations.

    Scalars of the CPU may be mixed with tensors of any device: kernels take them as arguments.

    Args:
        uploads: whether tensors may be copied from the host.
    """

    def __init__(self, uploads: bool = True) -> None:
        super().__init__()
        self.uploads, self.kernels = uploads, Counter[str]()

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        name, options = str(function), options or {}
        result = function(*arguments, **options)
        tensors = [leaf for leaf in tree_leaves((arguments, options, result)) if isinstance(leaf, torch.Tensor)]
        devices = {each.device for each in tensors if each.dim()}
        if len(devices) > 1 and not (self.uploads and name.startswith(UPLOADS)):
            raise AssertionError(f"{name} mixes {devices}")
        if any(each.device == META for each in tensors) and not function.is_view and not name.startswith(NO_KERNEL):
            self.kernels[name] += 1
        return result


def accelerator() -> SimpleNamespace:
    """What the training loop uses of an Accelerator of one process; Accelerate itself has none for `meta`."""
    return SimpleNamespace(
        device=META,
        mixed_precision="no",
        is_main_process=True,
        num_processes=1,
        process_index=0,
        autocast=nullcontext,
        prepare=lambda *objects: objects,
        backward=lambda loss: loss.backward(),
        clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    )


@pytest.fixture
def gpu_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch use the kernels for many tensors at once on `meta`, as on a GPU."""
    for module in [each for name, each in sys.modules.items() if name.startswith("torch.")]:
        for name in ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"):
            if name in vars(module):
                monkeypatch.setattr(module, name, lambda: ["meta", "cpu"])


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of tensors of each transfer to the host, whose values are zeros."""
    calls: list[int] = []

    def to_host(*values: torch.Tensor) -> tuple[Any, ...]:
        assert {each.device for each in values} == {META}
        calls.append(len(values))
        return tuple(np.zeros(each.shape, str(each.dtype).removeprefix("torch.")) for each in values)

    for module in ("decode.expert", "retrieve.dense"):
        monkeypatch.setattr(f"jzi.{module}.to_host", to_host)
    return calls


def meta_data(count: int = 12) -> ZoomDataset:
    steps = AREA.levels
    return ZoomDataset(
        torch.empty(count, 3, WIDTH, dtype=torch.float16, device=META),
        torch.zeros(count, steps, dtype=torch.int64, device=META),
        torch.zeros(count, steps, dtype=torch.int64, device=META),
        np.full(count, 48.2),
        np.full(count, 16.37),
        0,
        views=torch.full((count,), 2, device=META),
    )


def decoder(**changes: Any) -> ZoomDecoder:
    return ZoomDecoder(DecoderConfig(**{"width": WIDTH, "actions": 16, "layers": 2, "heads": 2} | changes)).to(META)


def test_the_mode_sees_an_index_on_another_device() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="mixes"):
        torch.empty(4, 3, device=META)[torch.tensor([0, 1])]
    with OneDevice(), pytest.raises(AssertionError, match="mixes"):
        torch.nn.functional.embedding(torch.tensor([0, 1]), torch.empty(4, 3, device=META))
    with OneDevice(uploads=False), pytest.raises(AssertionError, match="mixes"):
        torch.zeros(4).to(META)
    with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(4, device=META).sum().item()
    with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(4, device=META)[torch.empty(4, dtype=torch.bool, device=META)]


@pytest.mark.usefixtures("gpu_optimizer")
def test_steps_of_the_decoder_read_no_value_copy_nothing_and_launch_few_kernels(tmp_path: Path) -> None:
    network = decoder(dropout=0.1, layers=6).train()
    data, config = meta_data(), TrainConfig(batch_size=4)
    task = DecoderTask(accelerator(), network, TileTable(MAP, META), data, data, config, None)
    loop = TrainingLoop(task, TrainingRun(tmp_path, {}), progress=False)
    batches = task.batches(0, 0)
    loop.step(next(batches))  # creates the optimizer's state
    with OneDevice(uploads=False) as mode:
        losses = [loop.step(batch) for batch in batches]
    assert [loss.device for loss in losses] == [META, META]
    assert mode.kernels["aten._fused_adamw_.default"] == mode.kernels["aten._foreach_norm.Scalar"] == 2
    assert sum(mode.kernels.values()) / 2 <= MOST, mode.kernels


def test_learning_rates_on_the_device_are_set_without_a_copy() -> None:
    optimizer = torch.optim.AdamW([torch.empty(3, device=META, requires_grad=True)])
    schedule = Schedule(optimizer, lambda step: 0.5**step, META)
    with OneDevice(uploads=False) as mode:
        schedule.step()
    assert optimizer.param_groups[0]["lr"].device == META and dict(mode.kernels) == {"aten.fill_.Scalar": 1}


@pytest.mark.parametrize(("beams", "cells"), [(1, None), (4, 64)])
def test_search_reads_no_value_before_its_result(beams: int, cells: int | None) -> None:
    table, query = TileTable(MAP, META), torch.empty(3, WIDTH, device=META)
    with OneDevice():
        result = zoom(decoder().eval(), table, query, beams, cells=cells, temperature=torch.ones(2, device=META))
    assert result.paths.shape == (3, cells or beams, AREA.levels) and result.dropped.device == META


@pytest.mark.parametrize("estimate", ["greedy", "map"])
def test_the_posterior_of_the_zoom_is_read_once(estimate: str, transfers: list[int]) -> None:
    network = decoder().eval()
    packed = PackedDecoder(network, AREA.levels)
    model = SimpleNamespace(decoder=network, packed=packed, temperature=torch.ones(2, device=META), pyramid=AREA)
    with OneDevice():
        posterior = ZoomExpert(model, TileTable(MAP, META)).posterior(
            torch.empty(3, WIDTH, device=META), LocateOptions(estimate)
        )
    assert len(posterior) == 3 and len(transfers) == 1


@pytest.mark.parametrize(("kind", "sampled"), [(CellsTask, 10_000), (CellsTask, 60), (CellsTask, 20), (LevelsTask, 6)])
def test_steps_of_the_heads_read_no_value(kind: Any, sampled: int) -> None:
    info = SimpleNamespace(pyramid=AREA, encoder=ENCODER)
    data = SimpleNamespace(info=info, map_embeddings=MAP, whole_map=MAP, dataset=meta_data(), val=meta_data())
    shape = {"scales": AREA.levels} if kind is CellsTask else {"spaces": AREA.levels}
    heads = SimilarityHeads(HeadsConfig(WIDTH, hidden=16, **shape)).to(META)
    task = kind(accelerator(), data, HeadsTrainingConfig(sampled=sampled), None, 2, network=heads)
    task.begin_epoch(0)
    index = task.plan_epoch(0)[0]
    with OneDevice(uploads=kind is CellsTask and sampled < MASK.sum()):  # the sample's random numbers
        task.batch_loss(heads, index).backward()


def test_tiles_for_a_gpu_are_those_for_a_cpu_some_of_them_more_than_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for tiles in (8, 200):
        index = torch.randint(tiles, (6, 4), generator=generator)
        table = torch.randn(tiles, 3, generator=generator)
        selected, place = distinct_tiles(index, tiles)
        on_gpu = torch.empty(6, 4, dtype=torch.int64, device=META)
        assert torch.equal(table[selected][place], table[index])
        with OneDevice(uploads=False):
            selected, place = distinct_tiles(on_gpu, tiles)
        assert place.shape == (6, 4) and selected.device == META and len(selected) == min(tiles, 24)


def test_augmentation_reads_no_value() -> None:
    """With draws that select some images for each operation."""
    images, draws = torch.empty(8, 3, 28, 56, device=META), torch.rand(8, DRAWS)
    draws[:, [3, 8, 9, 11, DRAWS - 2]] = torch.linspace(0, 0.9, 8)[:, None]
    boxes = [(0, 28, 0, 56), (4, 24, 0, 56)] * 4
    with OneDevice():
        views = [augment_photos(images, draws), augment_tiles(images, draws), drop_parts(images, draws)]
        views += [jitter_padded(images, boxes, draws), jitter_colors(images, draws)]
        squares, generator = images[..., :28], torch.Generator().manual_seed(0)
        views += [coarsen_images(jitter_images(images, generator, 0.4), 3.0, generator)]
        turned = turn_windows(squares, torch.empty(8, dtype=torch.int64, device=META), 2, 3)
        turned = drop_tokens(turned.permute(0, 2, 3, 1), generator)
    assert all(view.device == META and view.shape == images.shape for view in views)
    assert turned.device == META and turned.shape == (8, 28, 28, 3)


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_a_step_of_fine_tuning_reads_no_value(contrast: float, encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder, image_size=28, device="meta")
    levels, generator = AREA.levels, torch.Generator().manual_seed(0)
    heads = SimilarityHeads(HeadsConfig(encoder.width, spaces=levels)) if contrast else None
    zoom_decoder = ZoomDecoder(DecoderConfig(width=encoder.width, actions=16, layers=1, heads=2))
    network = JointModel(encoder, zoom_decoder, 1, heads).to(META)
    paths = torch.randint(16, (3, levels), generator=generator)
    train = SimpleNamespace(tiles=TileTable(MAP).tiles_along(paths.numpy()), actions=paths)  # indices of the host
    images = torch.empty(17, 28, 28, 3, dtype=torch.uint8, device=META)
    cells = OnDevice() if contrast else None
    area = SimpleNamespace(pyramid=AREA, images=images, cells=cells, train=train)
    task = FinetuneTask(accelerator(), network, encoder, [area], FinetuneConfig(contrast=contrast), None)
    pixels = [np.zeros((28, 56, 3), np.uint8)] * 3
    with OneDevice():
        task.part_loss(network.train(), Part(0, torch.arange(3), pixels, (0, 0, 0)), generator).backward()


class OnDevice:
    """Stands for `CellImages` on the device."""

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(index), 28, 28, 3, dtype=torch.uint8, device=META)


def test_a_step_of_training_a_retriever_reads_no_value(encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder, image_size=28, device="meta")
    network = ContrastiveEncoder(encoder, 1, 10.0, True).to(META)
    area = SimpleNamespace(
        images=torch.empty(17, 28, 28, 3, dtype=torch.uint8, device=META),
        train=SimpleNamespace(tiles=torch.tensor([[3], [5], [3]])),
    )
    task = RetrieverTask(accelerator(), network, encoder, [area], RetrieverConfig(), None)
    pixels = [np.zeros((28, 56, 3), np.uint8)] * 3
    with OneDevice():
        part = Part(0, torch.arange(3), pixels, (0, 0, 0))
        task.part_loss(network.train(), part, torch.Generator().manual_seed(0)).backward()


@pytest.mark.parametrize("restricted", [False, True])
def test_the_posterior_of_a_dense_expert_is_read_once(restricted: bool, transfers: list[int]) -> None:
    heads = SimilarityHeads(HeadsConfig(WIDTH, scales=AREA.levels, hidden=16)).to(META).eval()
    expert = CellsExpert(AREA, ENCODER, MASK, heads, torch.empty(int(MASK.sum()), 128, device=META))
    if restricted:
        expert.columns = torch.arange(100, device=META)
    with OneDevice():
        posterior = expert.posterior(torch.empty(3, WIDTH, device=META), LocateOptions("greedy"))
    assert len(posterior) == 3 and transfers == [3]


def test_similarities_of_cells_and_training_photos_are_computed_where_they_lie() -> None:
    heads = SimilarityHeads(HeadsConfig(WIDTH, scales=AREA.levels, hidden=16)).to(META).eval()
    cells = CellsExpert(AREA, ENCODER, MASK, heads, torch.empty(int(MASK.sum()), 128, device=META))
    x = np.zeros(5)
    vpr = VprExpert(AREA, ENCODER, MASK, torch.empty(5, WIDTH, device=META), x, x, VprConfig(10.0))
    query = torch.empty(3, WIDTH, device=META)
    with OneDevice(), torch.inference_mode():
        assert cells.log_probabilities(query).shape == (3, int(MASK.sum()))
        assert (vpr._normalised(query) @ vpr.embedding.T).shape == (3, 5)


@pytest.mark.parametrize("loss", [symmetric_infonce, soft_margin_triplet])
def test_losses_of_retrieval_read_no_value(loss: Any) -> None:
    query, reference = (torch.empty(6, 8, device=META, requires_grad=True) for _ in range(2))
    scale, cells = torch.ones((), device=META), torch.empty(6, dtype=torch.int64, device=META)
    with OneDevice():
        loss(query, reference, cells, scale, 0.1).backward()
        logits = query @ reference.T
        decoupled_contrast(logits, torch.eye(6, dtype=torch.bool, device=META), 0.1).sum().backward()
        level_contrast(query[:, None], reference, cells[:, None]).backward()


def test_the_contrast_of_levels_is_that_of_distinct_places() -> None:
    generator = torch.Generator().manual_seed(0)
    photo_codes = torch.randn(5, 2, 3, generator=generator)
    place_codes = torch.randn(7, 3, generator=generator)
    places = torch.tensor([[6, 1], [2, 1], [6, 1], [0, 4], [2, 1]])
    losses = []
    for level in range(2):
        distinct, target = places[:, level].unique(return_inverse=True)
        logits = photo_codes[:, level] @ place_codes[distinct].T
        to_photo = -torch.stack(
            [logits[:, place].log_softmax(0)[target == place].mean() for place in range(len(distinct))]
        ).mean()
        losses.append((torch.nn.functional.cross_entropy(logits, target) + to_photo) / 2)
    torch.testing.assert_close(level_contrast(photo_codes, place_codes, places), sum(losses) / 2)


def test_a_step_of_the_published_refiner_reads_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # torch has none for `meta`
    with torch.device(META):
        model, batch, windows = UnifyGeo(replace(SMALL)), photos(SMALL), torch.empty(2, 3, 64, 64)
    with OneDevice():
        output: RefinerOutput = model.match(model.ground(batch), model.aerial(windows), None)
        truth = PairTruth(torch.zeros(2, 2, 2, device=META), torch.zeros(2, device=META))
        losses = refiner_losses(output, truth, 2.0)
        losses.total(LossWeights()).backward()


def test_candidates_are_refined_on_the_device_of_the_refiner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # torch has none for `meta`
    with META:
        model = UnifyGeo(replace(SMALL, bins=8))
    windows = SimpleNamespace(read=lambda *_: (np.zeros((2, 3, 64, 64), np.float32), np.ones((2, 64, 64), bool)))
    info = SimpleNamespace(temperature=1.0, heading_temperature=0.1, fusion=(1.0, 0.0))
    stage = RefineStage(model, info, windows, lambda *_: None)
    photo = PhotoData(pixels=torch.zeros(3, SMALL.ground_height, SMALL.ground_width))
    view = PhotoView(hfov_deg=360.0, panorama=True, heading_deg=10.0, heading_sd_deg=5.0)
    with OneDevice():
        output = stage.match(photo, view, Windows(AREA, [0.0, 10.0], [0.0, 10.0], 20.0, 64))
    assert output.logits.device == META and output.logits.shape == (2, 64, 64)


def test_benchmarks_compute_on_the_device_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for visible, value, expected in (
        ("2,5", "cuda:1", "5"),
        ("2,5", "cuda", "2"),
        ("2,5", "cpu", ""),
        ("2", None, "2"),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        choose_device(click.Context(click.Command("any")), click.Option(["--device"]), value)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    for value in ("cuda:7", "gpu"):
        with pytest.raises(click.BadParameter, match=value):
            choose_device(click.Context(click.Command("any")), click.Option(["--device"]), value)
