"""A compiled step is the same step: same losses, same resumed run, and a sentence where it is not compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable
from jzi.errors import ConfigError
from jzi.tests.test_experts import AREA, MAP, WIDTH
from jzi.train.compiled import WORTHWHILE, CompiledStep, NotCompiledError, wants_compiled
from jzi.train.config.training import TrainConfig
from jzi.train.decoder import DecoderTask
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.run import TrainingRun
from jzi.train.schedule import Schedule, learning_rate_factor

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

#: 44 photos: five full batches and an incomplete one in each epoch.
QUICK = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, precision="no", compile=True)


def photos(count: int = 44) -> ZoomDataset:
    generator = torch.Generator().manual_seed(3)
    paths = torch.randint(AREA.actions, (count, AREA.levels), generator=generator).numpy()
    query = torch.randn(count, 3, WIDTH, generator=generator).half()
    position = np.zeros(count)
    views = torch.full((count,), 2)
    tiles = TileTable(MAP).tiles_along(paths)
    return ZoomDataset(query, tiles, torch.from_numpy(paths), position, position, 0, views=views)


def make_loop(folder: Path, config: TrainConfig = QUICK, dropout: float = 0.0, **decoder: Any) -> TrainingLoop:
    run, data, accelerator = TrainingRun(folder, {}), photos(), make_accelerator(config, folder)
    torch.manual_seed(0)
    network = ZoomDecoder(DecoderConfig(width=WIDTH, actions=16, layers=1, heads=2, dropout=dropout, **decoder))
    task = DecoderTask(accelerator, network, TileTable(MAP), data, data, config, run)
    return TrainingLoop(task, run, progress=False)


def train(loop: TrainingLoop, first: int = 0) -> list[float]:
    """Losses of the steps of both epochs, from step `first` of the first on."""
    losses: list[float] = []
    for epoch in range(2):
        loop._epoch(epoch, 0 if epoch else first, losses, tqdm(disable=True))
    return losses


@pytest.fixture(
    params=["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])], scope="module"
)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """What compiles: the capture of the step alone, which takes a second, or the compiler too, which takes a minute."""
    compile_ = torch.compile

    def compile_with(function: Any, **options: Any) -> Any:
        return compile_(function, **{"backend": request.param, **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_with)
        yield request.param


@pytest.fixture(scope="module")
def compiled(backend: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A compiled run with dropout that nothing interrupts, and its state after three steps."""
    folder = tmp_path_factory.mktemp("compiled")
    loop = make_loop(folder, dropout=0.1)
    state: dict[str, Any] = {}
    plain_step = loop.step

    def step(batch: Any) -> torch.Tensor:
        loss = plain_step(batch)
        if loop.schedule.step_number == 3 and not state:
            torch.save(loop._state(0, 3, []), folder / "state.pt")
            state.update(torch.load(folder / "state.pt", weights_only=True))
        return loss

    loop.step = step  # type: ignore[method-assign]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses = train(loop)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return SimpleNamespace(loop=loop, losses=losses, state=state, graphs=graphs, folder=folder)


@pytest.mark.usefixtures("backend")
def test_a_compiled_run_has_the_losses_and_the_weights_of_one_that_is_not(tmp_path: Path) -> None:
    runs = [make_loop(tmp_path / str(value), replace(QUICK, compile=value)) for value in (True, False)]
    losses = [train(loop) for loop in runs]
    assert runs[0].compiled is not None and runs[0].compiled.is_compiled and runs[1].compiled is None
    np.testing.assert_allclose(*losses, rtol=2e-4)
    for one, other in zip(*(loop.task.network.parameters() for loop in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-4)


def test_a_run_is_compiled_once_whatever_the_learning_rate_and_the_last_batch(compiled: SimpleNamespace) -> None:
    assert compiled.graphs == 1 and len(compiled.losses) == 12


def test_a_compiled_run_that_is_resumed_is_the_same_run(compiled: SimpleNamespace, tmp_path: Path) -> None:
    loop = make_loop(tmp_path, dropout=0.1)
    loop._restore(compiled.state)
    assert train(loop, first=3) == compiled.losses[3:]
    for one, other in zip(loop.task.network.parameters(), compiled.loop.task.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_the_indices_of_a_batch_are_copied_into_the_graph(tmp_path: Path) -> None:
    loop, graphs = make_loop(tmp_path), []
    batches = loop.task.batches(0, 0)
    loop.step(next(batches))  # creates the moments
    assert loop.compiled is not None
    loop.compiled.fix_addresses()

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(loop.compiled.function(), backend=keep, fullgraph=True, dynamic=False)(next(batches).parts[0])
    copied = [
        node.meta["example_value"]
        for node in graphs[0].graph.nodes
        if node.op == "placeholder" and "_dynamo_static_input_type" not in node.meta.get("tensor_dict", {})
    ]
    assert [(each.dtype, tuple(each.shape)) for each in copied] == [(torch.int64, (8,))]


def test_what_cannot_be_compiled_continues_without_it_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler is installed\nat length")

        return call

    expected = train(make_loop(tmp_path / "plain", replace(QUICK, compile=False)))
    monkeypatch.setattr(torch, "compile", fail)
    loop = make_loop(tmp_path / "failed")
    np.testing.assert_allclose(train(loop), expected, rtol=1e-6)
    assert loop.compiled is None
    notice, line = capsys.readouterr().err.splitlines()
    assert notice.startswith("compiling")
    assert line == "jzi: train.compile has no effect, training continues without it: no C++ compiler is installed"


def task(**changes: Any) -> Any:
    accelerator = {"num_processes": 1, "mixed_precision": "bf16", "device": torch.device("cuda")}
    values = {"compile": True, "full_batches": lambda: WORTHWHILE, "obstacle": str, "config": QUICK}
    given = {**values, **{name: value for name, value in changes.items() if name in values}}
    given["accelerator"] = SimpleNamespace(**{name: changes.get(name, value) for name, value in accelerator.items()})
    return SimpleNamespace(**given)


def test_auto_compiles_long_runs_on_one_gpu_and_nothing_else() -> None:
    assert wants_compiled(task(compile="auto"))
    for change in (
        {"device": torch.device("cpu")},
        {"full_batches": lambda: WORTHWHILE - 1},
        {"num_processes": 2},
        {"mixed_precision": "fp16"},
        {"obstacle": lambda: "patch tokens"},
    ):
        assert not wants_compiled(task(compile="auto", **change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_processes": 2}, "several processes"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"full_batches": lambda: 0}, "fewer photos than a batch has, 8"),
        ({"obstacle": lambda: "patch tokens"}, "patch tokens"),
    ],
)
def test_a_run_that_cannot_be_compiled_has_a_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotCompiledError, match=reason):
        wants_compiled(task(**change))


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile"):
        TrainConfig(compile="always")  # type: ignore[arg-type]


# Learning rates


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_learning_rates_are_those_of_torch_and_tensors_stay_where_they_are(device: torch.device | None) -> None:
    def factor(step: int) -> float:
        return learning_rate_factor(step, 10, 2)

    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.3}]
    ours, theirs = (torch.optim.AdamW([dict(group) for group in groups], lr=0.1) for _ in range(2))
    schedule, lambdas = Schedule(ours, factor, device), torch.optim.lr_scheduler.LambdaLR(theirs, factor)
    places = [id(group["lr"]) for group in ours.param_groups]
    for _ in range(9):
        assert schedule.rates == lambdas.get_last_lr() == [float(group["lr"]) for group in ours.param_groups]
        theirs.step()
        lambdas.step()
        schedule.step()
    assert device is None or places == [id(group["lr"]) for group in ours.param_groups]
    resumed = Schedule(torch.optim.AdamW([dict(group) for group in groups], lr=0.1), factor, device)
    resumed.load_state_dict(lambdas.state_dict())
    assert resumed.rates == schedule.rates


def test_a_state_that_was_saved_without_compiling_can_be_compiled(tmp_path: Path) -> None:
    plain, later = make_loop(tmp_path / "plain", replace(QUICK, compile=False)), make_loop(tmp_path / "later")
    plain.step(next(plain.task.batches(0, 0)))
    later._restore(plain._state(0, 1, []))
    assert isinstance(later.optimizer.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert isinstance(later.compiled, CompiledStep) and later.compiled.is_ready
