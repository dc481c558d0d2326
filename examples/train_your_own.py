"""Train a small model of your own on the cache: a PyTorch loop of thirty lines, without jzi's training.

    python examples/train_your_own.py features.zarr

The model sees a photo and the tile that a zoom is in, and chooses one of its children, without memory of the steps
before: what is left of jzi's decoder without attention. Everything comes from the cache that `jzi encode-map` and
`jzi encode-queries` filled; no image is opened, so an epoch takes a fraction of a second on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import jzi
from jzi.errors import JziError
from jzi.store.geometry.pyramid import geodesic_distance


class StepModel(nn.Module):
    """Logits of the children of a tile, given the embeddings of the photo and of the tile."""

    def __init__(self, width: int, children: int, levels: int, hidden: int = 256) -> None:
        super().__init__()
        self.level = nn.Embedding(levels, width)
        self.layers = nn.Sequential(
            nn.LayerNorm(3 * width),
            nn.Linear(3 * width, hidden),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(hidden, children),
        )

    def forward(self, query: Tensor, tile: Tensor, level: Tensor) -> Tensor:
        """Embeddings of photos and tiles (n, feature), and levels (n,), to logits (n, child)."""
        return self.layers(torch.cat([query, tile, self.level(level)], -1))


def train(model: StepModel, table: jzi.TileTable, photos: jzi.ZoomDataset, epochs: int, seed: int = 0) -> None:
    """Train on the true paths: at each step, the true tile is given (teacher forcing)."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(photos, batch_size=128, shuffle=True, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    levels = table.pyramid.levels
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in loader:
            tiles = table.embedding[batch["tiles"]].float()  # (photo, L, feature)
            query = batch["query"][:, None].expand_as(tiles)
            level = torch.arange(levels).expand(len(tiles), levels)
            logits = model(query.flatten(0, 1), tiles.flatten(0, 1), level.flatten())
            loss = nn.functional.cross_entropy(logits, batch["actions"].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(tiles)
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: loss {total / len(photos):.3f}")


@torch.inference_mode()
def locate(model: StepModel, table: jzi.TileTable, query: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Zoom greedily; returns latitudes and longitudes (photo,) of the centres of the cells."""
    model.eval()
    grid = table.pyramid.grid
    row = col = torch.zeros(len(query), dtype=torch.int64)
    for level in range(table.pyramid.levels):
        tile = table.index(level, row, col)
        logits = model(query, table.embedding[tile].float(), torch.full_like(row, level))
        action = logits.masked_fill(~table.search_mask[tile], -torch.inf).argmax(-1)  # never without imagery
        row, col = row * grid + action // grid, col * grid + action % grid
    return table.pyramid.unproject(*table.pyramid.cell_centers(row.numpy(), col.numpy()))


def main() -> None:
    """Train, and measure on photos that were held out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cache", type=Path, help="a cache with the map and photos, such as features.zarr")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    cache = jzi.FeatureCache.open(str(arguments.cache))
    table = jzi.TileTable(cache.read_map())
    photos = {split: jzi.ZoomDataset.load(cache, table, split) for split in ("train", "test")}
    print(", ".join(f"{len(each)} photos of {split}" for split, each in photos.items()))

    model = StepModel(table.width, table.pyramid.grid**2, table.pyramid.levels)
    train(model, table, photos["train"], arguments.epochs)

    test = photos["test"]
    latitude, longitude = locate(model, table, test.query[:, 0].float())
    error = geodesic_distance(test.latitude, test.longitude, latitude, longitude)
    recall = ", ".join(f"{(error <= radius).mean():.1%} within {radius} m" for radius in (40, 50, 100))
    print(f"test: {recall}, median {np.median(error):.0f} m")


if __name__ == "__main__":
    try:
        main()
    except JziError as error:
        raise SystemExit(str(error)) from None
