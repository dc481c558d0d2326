"""Training steps, search and refinement stay on one device: they run on `meta`, where no value can be read.

A hidden synchronisation (`.item()`, `.tolist()`, `.numpy()`, `.cpu()`, a boolean index) raises there. The mode below
raises where an operation mixes devices, indices included, which a CPU would accept and a GPU would not.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.refine.model import UnifyGeo
from jzi.refine.outputs import RefinerOutput
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.vpr import VprConfig, VprExpert
from jzi.tests.test_experts import AREA, ENCODER, MAP, MASK, WIDTH
from jzi.tests.test_refine_model import SMALL, photos
from jzi.train.config import HeadsTrainingConfig, TrainConfig
from jzi.train.decoder import DecoderTask
from jzi.train.heads import CellsTask
from jzi.train.losses import decoupled_contrast, soft_margin_triplet, symmetric_infonce
from jzi.train.refine_losses import LossWeights, PairTruth, refiner_losses

META = torch.device("meta")

#: Operations that copy from the host to the device on purpose: tensors are uploaded before the steps.
UPLOADS = {"aten._to_copy.default", "aten.copy_.default"}


class OneDevice(TorchDispatchMode):
    """Raises where an operation has inputs on several devices.

    Scalars of the CPU may be mixed with tensors of any device: kernels take them as arguments.
    """

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        name, options = str(function), options or {}
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        devices = {each.device for each in tensors if each.dim()}
        if len(devices) > 1 and name not in UPLOADS:
            raise AssertionError(f"{name} mixes {devices}")
        return function(*arguments, **options)


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device=META, autocast=nullcontext, num_processes=1, process_index=0)


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
    return ZoomDecoder(DecoderConfig(width=WIDTH, actions=16, layers=2, heads=2, **changes)).to(META)


def test_the_mode_sees_an_index_on_another_device() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="mixes"):
        torch.empty(4, 3, device=META)[torch.tensor([0, 1])]
    with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(4, device=META).sum().item()
    with OneDevice(), pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(4, device=META)[torch.empty(4, dtype=torch.bool, device=META)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_step_of_the_decoder_reads_no_value(dropout: float) -> None:
    network = decoder(dropout=dropout).train()
    task = DecoderTask(accelerator(), network, TileTable(MAP, META), meta_data(), meta_data(), TrainConfig(), None)
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)  # torch has no others on `meta`
    task.begin_epoch(0)
    index = task.plan_epoch(0)[0]
    with OneDevice():
        task.loss(network, index).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=False)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("beams", "cells"), [(1, None), (4, 64)])
def test_search_reads_no_value_before_its_result(beams: int, cells: int | None) -> None:
    table, query = TileTable(MAP, META), torch.empty(3, WIDTH, device=META)
    with OneDevice():
        result = zoom(decoder().eval(), table, query, beams, cells=cells, temperature=torch.ones(2, device=META))
    assert result.paths.shape == (3, cells or beams, AREA.levels) and result.dropped.device == META


def test_the_loss_of_the_cells_reads_no_value() -> None:
    info = SimpleNamespace(pyramid=AREA, encoder=ENCODER)
    data = SimpleNamespace(info=info, map_embeddings=MAP, train=meta_data(), val=meta_data())
    heads = SimilarityHeads(HeadsConfig(WIDTH, scales=AREA.levels, hidden=16)).to(META)
    task = CellsTask(accelerator(), data, HeadsTrainingConfig(), None, 2, network=heads)
    task.begin_epoch(0)
    index = task.plan_epoch(0)[0]
    with OneDevice():
        task.batch_loss(heads, index).backward()


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


def test_a_step_of_the_published_refiner_reads_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # torch has none for `meta`
    with torch.device(META):
        model, batch, windows = UnifyGeo(replace(SMALL)), photos(SMALL), torch.empty(2, 3, 64, 64)
    with OneDevice():
        output: RefinerOutput = model.match(model.ground(batch), model.aerial(windows), None)
        truth = PairTruth(torch.zeros(2, 2, 2, device=META), torch.zeros(2, device=META))
        losses = refiner_losses(output, truth, 2.0)
        losses.total(LossWeights()).backward()
