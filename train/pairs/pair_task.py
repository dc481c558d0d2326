"""Training of UnifyGeo on pairs of photos and aerial images (arXiv 2505.07622): retrieval and metres at once, or one.

Views, batches, augmentation and dropout are functions of the seed, the epoch and the step, so a resumed run is the same
run. Everything that a network is compared by is measured as `jzi evaluate` measures it, on validation photos.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from jzi.encode.photo.pair_images import PairImages
from jzi.errors import PairsError, TrainingError
from jzi.evaluate.pair_protocol import PairOptions, evaluate_pairs, to_input
from jzi.refine.networks.files import RefinerInfo, save_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.outputs import PhotoInput, RefinerOutput
from jzi.store.photos.pairs import PairDataset
from jzi.train.config.pairs import PairTrainingConfig
from jzi.train.encoders.encoder import seeded_generator
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.losses import infonce_of_pairs
from jzi.train.pairs.pair_data import (
    PairBatch,
    distinct_batches,
    draw_views,
    neighbours_by_position,
    neighbours_by_similarity,
    order_photos,
    prepare,
    read_ahead,
)
from jzi.train.refine.refine_losses import LossWeights, RefinerLosses, refiner_losses
from jzi.train.refine.refiner import WEIGHTS
from jzi.train.run import Metrics, TrainingRun, TrainReport
from jzi.train.task import Batch, Task

#: Largest scale of cosines of embeddings that is learned, as in CLIP and Sample4Geo.
MAX_SCALE = 100.0


class PairNetwork(nn.Module):
    """UnifyGeo, and the scale of its embeddings' cosines; its forward pass computes what the losses need.

    Args:
        unifygeo: the network.
        config: which losses there are.
    """

    def __init__(self, unifygeo: UnifyGeo, config: PairTrainingConfig) -> None:
        super().__init__()
        self.unifygeo = unifygeo
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.retrieves, self.locates, self.reranks = config.retrieves, config.locates, config.rerank > 0

    def forward(
        self, photos: PhotoInput, windows: Tensor
    ) -> tuple[RefinerOutput | None, Tensor | None, tuple[Tensor, Tensor, Tensor] | None]:
        """Densities over the photos' own windows, level 0 of all photos and windows, and embeddings with their scale.

        What is not trained is None.
        """
        network, scale = self.unifygeo, self.log_scale.exp().clamp(max=MAX_SCALE)
        if not self.locates:
            return None, None, (network.embed_ground(photos), network.embed_aerial(windows), scale)
        ground, aerial = network.ground(photos), network.aerial(windows)
        output = network.match(ground, aerial)
        cross = network.match_level0(ground, aerial) if self.reranks else None
        if not self.retrieves or ground.embedding is None or aerial.embedding is None:
            return output, cross, None
        return output, cross, (ground.embedding, aerial.embedding, scale)


class PairTask(Task):
    """Training of UnifyGeo on a data set of pairs.

    Args:
        accelerator: device, precision and processes. Embeddings are compared among the photos of all processes, places
            among those of each.
        unifygeo: the network to train, in place.
        train: training photos.
        val: validation photos, which select the epoch.
        config: the settings of training.
        aligned: whether panoramas are aligned.
        info: what to record beside the weights.
        run: the run whose folder the weights are written to.
    """

    label = "unifygeo"
    check_every = 20
    clips_values = True
    network: PairNetwork
    config: PairTrainingConfig

    def __init__(
        self,
        accelerator: Accelerator,
        unifygeo: UnifyGeo,
        train: PairDataset,
        val: PairDataset,
        config: PairTrainingConfig,
        aligned: bool,
        info: RefinerInfo,
        run: TrainingRun,
    ) -> None:
        self.accelerator, self.config, self.run, self.info = accelerator, config, run, info
        self.train, self.val, self.aligned = train, val, aligned
        self.network = PairNetwork(unifygeo, config)
        self.device = accelerator.device
        self.fused = self.device.type == "cuda"
        architecture = unifygeo.config
        shape = (architecture.ground_height, architecture.ground_width)
        self.images = PairImages(train, shape, architecture.photo_width, architecture.aerial)
        self.weights = LossWeights(config.decoder, config.retrieval, config.matching, config.rerank)
        self.sums = torch.zeros(len(fields(RefinerLosses)) + 1, device=self.device)  # losses, and their number
        #: Order of the photos in this epoch and in those until the next mining, by epoch.
        self.orders: dict[int, Tensor] = {}
        self._freeze_unused()

    @property
    def unifygeo(self) -> UnifyGeo:
        """The network without its scale."""
        return self.network.unifygeo

    def _freeze_unused(self) -> None:
        """Take parameters out of the training that no loss depends on; DDP would wait for their gradients."""
        config, rolls = self.unifygeo.config, self.unifygeo.config.rolls
        whole = bool((self.train.hfov_deg[:1] >= 360).all())
        width = config.ground_width if whole else config.photo_width
        pixels = torch.zeros(1, 3, config.ground_height, width)
        photo = PhotoInput(torch.full((1,), 360.0), torch.tensor([whole]), torch.zeros(1, rolls), pixels=pixels)
        with torch.enable_grad():
            output, cross, embeddings = self.network(photo, torch.zeros(1, 3, config.aerial, config.aerial))
            parts = [] if output is None else [output.logits, *output.levels]
            parts += [] if cross is None else [cross]
            parts += [] if embeddings is None else [*embeddings]
            total = torch.stack([each.float().sum() for each in parts]).sum()
            trained = [each for each in self.network.parameters() if each.requires_grad]
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights of layers, and all vectors and scalars, which do not decay."""
        trained = [each for each in self.network.parameters() if each.requires_grad]
        layers, others = ([each for each in trained if (each.ndim > 1) == layer] for layer in (True, False))
        return [{"params": layers}, {"params": others, "weight_decay": 0.0}]

    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return math.ceil(len(self.train) / self.config.batch_size)

    # Batches

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """This process's pairs, read ahead; a part is the epoch, the step and the pairs."""
        if not first:
            self.sums.zero_()
        world, process = self.accelerator.num_processes, self.accelerator.process_index
        plan = distinct_batches(self.order(epoch), self.train.positive, self.config.batch_size)[first:]
        # every process has at least one pair; the last batch may have fewer than there are processes
        shares = [np.resize(batch, max(len(batch), world))[process::world] for batch in plan]
        dataset = draw_views(self.train, (self.config.seed, epoch))
        read = read_ahead(dataset, replace(self.images, dataset=dataset), shares, self.aligned)
        sizes = [len(batch) for batch in plan]
        return (
            Batch([(epoch, step, pairs)], [len(pairs)], size)
            for (step, pairs), size in zip(enumerate(read, first), sizes, strict=True)
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(photo,) the order of the training photos in an epoch."""
        if epoch not in self.orders:
            self.orders = self._plan(epoch)
        return self.orders[epoch].long().numpy()

    def _plan(self, epoch: int) -> dict[int, Tensor]:
        """Orders of the epochs until the next mining."""
        config = self.config
        references, own = np.unique(self.train.positive, return_inverse=True)
        neighbours, last = None, epoch + 1
        if config.sampling == "neighbours" and len(references) > 1:
            first = epoch // config.mine_every * config.mine_every
            last = min(first + config.mine_every, config.epochs)
            if first == 0:
                if self.train.located:
                    neighbours = neighbours_by_position(self.train, references, config.neighbour_range)[own]
            elif config.retrieves:
                neighbours = self._mine(references, own)
        return {
            each: torch.from_numpy(
                order_photos(
                    len(self.train), own, neighbours, config.batch_size, config.neighbours, (config.seed, each)
                )
            ).int()
            for each in range(epoch, last)
        }

    @torch.inference_mode()
    def _mine(self, references: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int32]:
        """(photo, range) indices into `references` of those most similar to each photo, by the network so far.

        Images that cannot be read have an embedding of zeros, and their photos are left out of batches.
        """
        self.network.eval()
        config, rolls = self.unifygeo.config, self.unifygeo.config.rolls
        black = np.zeros((config.aerial, config.aerial, 3), np.uint8)
        views = self.images.views((int(index), np.zeros(3)) for index in references)
        reference = [
            self._embed([black if each is None else each for each in batch], None)
            for batch in _in_batches(views, self.config.batch_size)
        ]
        whole = bool((self.train.hfov_deg[:1] >= 360).all())
        width = config.ground_width if whole else config.photo_width
        black = np.zeros((config.ground_height, width, 3), np.uint8)
        photos = self.images.photos(range(len(self.train)))
        query = [
            self._embed([black if each is None else each for each in batch], rolls)
            for batch in _in_batches(photos, self.config.batch_size)
        ]
        return neighbours_by_similarity(torch.cat(query), torch.cat(reference), own, self.config.neighbour_range)

    def _embed(self, images: list[NDArray[np.uint8]], rolls: int | None) -> Tensor:
        """Embeddings of photos, or of aerial images if `rolls` is None."""
        pixels = to_input(images, self.device)
        with self.accelerator.autocast():
            if rolls is None:
                return self.unifygeo.embed_aerial(pixels).float()
            count = len(images)
            hfov = torch.full((count,), float(self.train.hfov_deg[0]), device=self.device)
            flat = torch.zeros(count, rolls, device=self.device)
            return self.unifygeo.embed_ground(PhotoInput(hfov, hfov >= 360, flat, pixels=pixels)).float()

    # The objective

    def loss(self, model: nn.Module, part: tuple[int, int, PairBatch]) -> Tensor:
        """The weighted sum of the losses of a batch, with everything random seeded by the step."""
        epoch, step, batch = part
        config = self.config
        seed = config.seed, epoch, step, self.accelerator.process_index
        generator = seeded_generator(*seed)
        rolls = self.unifygeo.config.rolls
        photos, windows, truth = prepare(
            batch, self.train, rolls, generator, self.device, augment=config.augment, aligned=self.aligned
        )
        with self.accelerator.autocast():
            output, cross, embeddings = model(photos, windows)
        off = torch.zeros((), device=self.device)
        losses = RefinerLosses(off, off, off, off)
        if output is not None:
            losses = refiner_losses(output, truth, self.sigma_px(batch), cross=cross, semi=config.semi)
        if embeddings is not None:
            losses = replace(losses, retrieval=self._retrieval_loss(embeddings, batch))
        self.sums += torch.cat([losses.values(), torch.ones(1, device=self.device)])
        return losses.total(self.weights)

    def sigma_px(self, batch: PairBatch) -> float:
        """Standard deviation of the Gaussian around the true places, pixels of the mean side of the views."""
        side = float(self.train.sides(self.train.positive[batch.index]).mean())
        return self.config.sigma_m * self.unifygeo.config.pixels / side

    def _retrieval_loss(self, embeddings: tuple[Tensor, Tensor, Tensor], batch: PairBatch) -> Tensor:
        """L_G among the photos of all processes, without aerial images that show a photo's place."""
        query, reference = (self.gather_rows(values.float(), 0.0) for values in embeddings[:2])
        scale = embeddings[2]
        index = self.gather_rows(torch.from_numpy(batch.index).to(self.device), -1).cpu().numpy()
        valid = index >= 0
        shown = np.zeros((len(index), len(index)), bool)
        references = self.train.positive[index[valid]]
        places = self.train.places(index[valid], references)
        half = self.train.side_m[references] / 2
        shown[np.ix_(valid, valid)] = (np.abs(places) < half[:, None]).all(-1)
        allowed = valid[:, None] & valid & ~shown | np.diag(valid)
        world = self.accelerator.num_processes
        scale = (scale + (world - 1) * scale.detach()) / world  # `loss_of_rows` multiplies its whole gradient
        smoothing = self.config.label_smoothing
        mask = torch.from_numpy(allowed).to(self.device)
        return self.loss_of_rows(infonce_of_pairs(query, reference, mask, scale.float(), smoothing))

    # Validation

    def validate(self) -> Metrics:
        """Recall and metres of validation photos, and the mean of each loss in the epoch."""
        names = [f"loss_{each.name}" for each in fields(RefinerLosses)]
        metrics: Metrics = dict(zip(names, (self.sums[:-1] / self.sums[-1].clamp(min=1)).tolist(), strict=True))
        if not len(self.val):
            return metrics
        options = pair_options(self.config, rerank=True, batch_size=self.config.batch_size)
        heading = None if self.aligned else np.random.default_rng([self.config.seed]).uniform(0, 360, len(self.val))
        evaluation = evaluate_pairs(self.unifygeo, self.val, replace(options, heading=heading, all_references=False))
        figures = evaluation.figures()
        for name, value in figures.get("retrieval", {}).items():
            metrics[name] = value.value
        for group in ("final", "localized", "heading"):
            for name, value in figures.get(group, {}).items():
                metrics[f"{group}_{name}"] = value.value
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def keep_best(self) -> None:
        """Write the network with its current weights."""
        save_refiner(self.run.folder, self.unifygeo, self.info)

    def extra_state(self) -> dict[str, Any]:
        """Orders of the last mining, and sums of the losses of this epoch."""
        return {"orders": self.orders, "loss_sums": self.sums.cpu()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        self.orders = state["orders"]
        self.sums.copy_(state["loss_sums"])


def pair_options(
    config: PairTrainingConfig,
    *,
    rerank: bool,
    batch_size: int,
    top: int = 5,
    heading: NDArray[np.float64] | None = None,
) -> PairOptions:
    """What a network that was trained with some settings can be evaluated on; other arguments as of `PairOptions`."""
    return PairOptions(
        retrieves=config.retrieves,
        locates=config.locates,
        rerank=rerank and config.locates,
        top=top,
        batch_size=batch_size,
        heading=heading,
    )


def selection(config: PairTrainingConfig, dataset: PairDataset) -> str:
    """Name of the metric that selects the epoch: recall at 1 after re-ranking, or metres where nothing is retrieved."""
    if config.retrieves and not dataset.turn_deg:
        return "recall@1"
    return "localized_recall@5m"


def check_metric(dataset: PairDataset, config: PairTrainingConfig) -> None:
    """Raise an error if places would be trained that are not known, or that are all at the centre.

    Raises:
        PairsError: the losses of the place are on and the data set has no offsets to train them with.
    """
    if not (config.locates and dataset.not_metric) or dataset.shift_m:
        return
    crops = "" if dataset.offset.any() else ", or shifted crops of the centred images with pairs.crop below 1"
    raise PairsError(
        f"the place in aerial images cannot be trained on {dataset.name}: {dataset.not_metric}; train retrieval alone "
        f"with refiner.decoder, matching and rerank = 0{crops}"
    )


def train_pairs(
    train: PairDataset,
    val: PairDataset,
    make: Callable[[], UnifyGeo],
    folder: Path,
    config: PairTrainingConfig,
    *,
    aligned: bool,
    fingerprint: dict[str, Any],
    settings: str = "",
    progress: bool = True,
) -> tuple[TrainReport, dict[str, str]]:
    """Train UnifyGeo, and keep the epoch with the best recall, or metres, of the validation photos.

    An interrupted run with the same settings and photos is resumed, also within an epoch. Under `accelerate launch` the
    processes share each batch.

    Args:
        train: training photos.
        val: validation photos; may be none.
        make: makes the network to train, after the seed is set.
        folder: the refiner's folder to write.
        config: the settings of training.
        aligned: whether panoramas are aligned.
        fingerprint: what the outcome depends on beside the settings of training: architecture, data set and photos.
        settings: TOML to write to train/settings.toml.
        progress: whether to show a progress bar.

    Returns:
        The report, and images that could not be read, with reasons.

    Raises:
        PairsError: the losses of the place are on, and the data set has no metric labels.
        TrainingError: there is no photo to train on, or the loss is not finite.
        ModelError: the folder holds a network that was trained in another way, or cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
    """
    check_metric(train, config)
    if not len(train):
        raise TrainingError(f"{train.name} has no photo to train on: check the folder")
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    unifygeo = make()
    run = TrainingRun(
        folder,
        {**config.fingerprint(), **fingerprint},
        hint="give another folder with -o, or delete it",
        weights=WEIGHTS,
        selects=selection(config, train),
    )
    state = run.resume()
    began, before = time.monotonic(), state["epoch"]
    unreadable: dict[str, str] = {}
    count = config.val_photos
    chosen = val.take(np.linspace(0, len(val) - 1, count).astype(int)) if len(val) > count else val
    if before < config.epochs:
        side = float(train.sides(train.positive).mean())
        info = RefinerInfo(kind="unifygeo", config=unifygeo.config, window_m=side)
        task = PairTask(accelerator, unifygeo, train, chosen, config, aligned, info, run)
        if accelerator.is_main_process:
            run.start(settings)
        accelerator.wait_for_everyone()
        loop = TrainingLoop(task, run, progress=progress)
        loop.train(state)
        unreadable = task.images.unreadable
        loop.close()
    report = TrainReport(
        folder=folder,
        epochs=len(run.metrics) - before if before < config.epochs else 0,
        total=config.epochs,
        best=run.best() if run.metrics else {},
        train=len(train),
        val=len(chosen),
        unreachable=0,
        seconds=time.monotonic() - began,
    )
    return report, unreadable


def _in_batches(images: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive images in lists of a size."""
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
