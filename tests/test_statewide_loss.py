"""The decoupled contrastive loss: its values, its numerics, its gradients, in one process and in two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from jzi.tests.children import run_distributed
from jzi.train.losses import decoupled_contrast, soft_margins

QUERY = 2 * torch.tensor([(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)], dtype=torch.float64)
REFERENCE = 2 * torch.tensor([(0.8, 0.6), (0.0, 1.0), (1.0, 0.0)], dtype=torch.float64)


def loop(logits: torch.Tensor, pairs: torch.Tensor, smoothing: float, decoupled: bool = True) -> float:
    """The same by the definition: sums over pairs, in float64."""
    total, n = 0.0, len(logits)
    for x, m in ((logits.double(), pairs), (logits.double().T, pairs.T)):
        for i in range(n):
            allowed = [j for j in range(n) if m[i, j]]
            if not m[i, i] or len(allowed) < 2:
                continue
            for j in allowed:
                others = [float(x[i, k]) for k in allowed if k != j or not decoupled]
                high = max(others)
                log_sum = high + math.log(sum(math.exp(each - high) for each in others))
                label = 1 - smoothing if i == j else smoothing / (len(allowed) - 1)
                total -= label * (float(x[i, j]) - log_sum)
    return total / 2 / max(int(pairs.diagonal().sum()), 1)


def random_batch(n: int, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, n) logits, and pairs of which some are no negatives, not symmetrically."""
    rng = torch.Generator().manual_seed(seed)
    query, reference = (F.normalize(torch.randn(n, 8, generator=rng), dim=-1) for _ in range(2))
    pairs = torch.rand(n, n, generator=rng) > 0.2
    return scale * query @ reference.T, pairs | torch.eye(n, dtype=torch.bool)


@pytest.mark.parametrize(
    "smoothing, masked, expected",
    [
        (0.0, False, 0.479869424),
        (0.1, False, 0.593977654),
        (0.0, True, -0.859513886),
        (0.1, True, -0.570482249),
    ],
)
def test_the_loss_of_three_photos_has_the_value_computed_by_hand(smoothing, masked, expected) -> None:
    pairs = torch.ones(3, 3, dtype=torch.bool)
    pairs[0, 2] = not masked
    logits = QUERY @ REFERENCE.T
    assert loop(logits, pairs, smoothing) == pytest.approx(expected, abs=1e-9)
    assert float(decoupled_contrast(logits, pairs, smoothing)) == pytest.approx(expected, abs=1e-9)
    assert float(decoupled_contrast(logits.float(), pairs, smoothing)) == pytest.approx(expected, abs=3e-7)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("scale", [1.0, 10.0, 36.0])
def test_the_loss_equals_a_loop_over_all_pairs(scale, decoupled) -> None:
    for seed, n in enumerate((2, 3, 30)):
        logits, pairs = random_batch(n, scale, seed)
        found = decoupled_contrast(logits, pairs, 0.1, decoupled=decoupled)
        assert float(found) == pytest.approx(loop(logits, pairs, 0.1, decoupled), rel=1e-6, abs=1e-6)


def test_without_masks_an_ordinary_softmax_is_torch_cross_entropy() -> None:
    logits, pairs = random_batch(6, 9.0, 0)
    found = decoupled_contrast(logits, torch.ones_like(pairs), 0.0, decoupled=False)
    own = torch.arange(6)
    torch.testing.assert_close(found, (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)


def test_a_pair_that_dominates_leaves_the_loss_exact_and_its_negatives_a_gradient() -> None:
    logits = torch.tensor([[36.0, -36.0, -30.0], [-36.0, 36.0, -30.0], [-30.0, -30.0, 36.0]], requires_grad=True)
    pairs = torch.ones(3, 3, dtype=torch.bool)
    loss = decoupled_contrast(logits, pairs, 0.1)
    assert float(loss.detach()) == pytest.approx(loop(logits.detach(), pairs, 0.1), rel=1e-6)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    slow = torch.zeros((), dtype=torch.float64)
    for x in (exact, exact.T):
        for i in range(3):
            for j in range(3):
                others = torch.stack([x[i, k] for k in range(3) if k != j])
                slow = slow - (0.9 if i == j else 0.05) * (x[i, j] - others.logsumexp(0)) / 6
    slow.backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)
    assert logits.grad[0, 2] > 0.1  # the hardest negative of the first photo is still pushed away


def test_gradients_are_those_of_finite_differences() -> None:
    logits, pairs = random_batch(5, 4.0, 3)
    logits.requires_grad_()
    decoupled_contrast(logits, pairs, 0.1).backward()
    for i, j in ((0, 0), (1, 3), (4, 2)):
        step = torch.zeros(5, 5, dtype=torch.float64)
        step[i, j] = 1e-5
        values = [loop(logits.detach().double() + sign * step, pairs, 0.1) for sign in (1, -1)]
        assert float(logits.grad[i, j]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-5)


def test_a_photo_without_a_negative_contributes_nothing() -> None:
    logits, pairs = random_batch(4, 5.0, 1)
    pairs[2] = torch.eye(4, dtype=torch.bool)[2]
    logits.requires_grad_()
    loss = decoupled_contrast(logits, pairs, 0.1)
    assert float(loss.detach()) == pytest.approx(loop(logits.detach(), pairs, 0.1), rel=1e-6)
    alone = decoupled_contrast(logits, torch.eye(4, dtype=torch.bool), 0.1)
    alone.backward()
    assert alone == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [lambda *batch: decoupled_contrast(*batch, 0.1), soft_margins])
def test_padding_changes_nothing(loss) -> None:
    logits, pairs = random_batch(6, 5.0, 2)
    pairs[4] = pairs[:, 4] = False
    logits.requires_grad_()
    kept = torch.tensor([0, 1, 2, 3, 5])
    torch.testing.assert_close(loss(logits, pairs), loss(logits[kept][:, kept], pairs[kept][:, kept]))
    loss(logits, pairs).backward()
    assert logits.grad.isfinite().all() and (logits.grad[4] == 0).all() and (logits.grad[:, 4] == 0).all()


def test_bfloat16_similarities_are_not_rounded_further() -> None:
    logits, pairs = random_batch(6, 36.0, 2)
    rounded = logits.bfloat16()
    assert decoupled_contrast(rounded, pairs, 0.1).dtype == torch.float32
    torch.testing.assert_close(decoupled_contrast(rounded, pairs, 0.1), decoupled_contrast(rounded.float(), pairs, 0.1))


def test_triplets_are_the_mean_over_the_allowed_negatives() -> None:
    logits, pairs = random_batch(5, 3.0, 4)
    margins = []
    for i in range(5):
        for j in range(5):
            if i != j and pairs[i, j]:
                margins += [logits[i, j] - logits[i, i], logits[i, j] - logits[j, j]]
    torch.testing.assert_close(soft_margins(logits, pairs), F.softplus(torch.stack(margins)).mean())


#: Prints the loss of a linear network on six photos, five of them readable, and its averaged gradient, of all processes
#: and as one computes it.
PROCESS = """
import copy, json, os, torch
from types import SimpleNamespace
from accelerate import Accelerator
from jzi.train.losses import decoupled_contrast
from jzi.train.task import Task

accelerator = Accelerator(cpu=True)
task = SimpleNamespace(accelerator=accelerator)
torch.manual_seed(0)
network = torch.nn.Linear(5, 7)
photos, cells, far = torch.randn(6, 5), torch.randn(6, 5), torch.rand(6, 6) > 0.2
readable = torch.tensor([True, True, False, True, True, True])
alone = copy.deepcopy(network)
model = accelerator.prepare(network)
world, rank = accelerator.num_processes, accelerator.process_index
both = torch.nn.functional.normalize(model(torch.cat([photos[rank::world], cells[rank::world]])), dim=-1)
query, reference = (Task.gather_rows(task, rows, 0.0) for rows in both.chunk(2))
order = torch.cat([torch.arange(6)[start::world] for start in range(world)])
kept = readable[order]
pairs = (far[order][:, order] | torch.eye(6, dtype=torch.bool)) & kept[:, None] & kept
loss = decoupled_contrast(36 * query @ reference.T, pairs, 0.1)
accelerator.backward(Task.loss_of_rows(task, loss))
if accelerator.is_main_process:
    query, reference = torch.nn.functional.normalize(alone(torch.cat([photos, cells])), dim=-1).chunk(2)
    pairs = (far | torch.eye(6, dtype=torch.bool)) & readable[:, None] & readable
    whole = decoupled_contrast(36 * query @ reference.T, pairs, 0.1)
    whole.backward()
    for value, one in ((loss, network), (whole, alone)):
        print(json.dumps([world, value.item(), *one.weight.grad.flatten().tolist()]), flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # torch can abort while it ends the threads of a group of processes
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    two, one = map(json.loads, run_distributed(2, script).output.splitlines())
    assert two[0] == 2 and len(two) == 37 and max(map(abs, one[2:])) > 0.1
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
