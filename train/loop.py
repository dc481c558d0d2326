"""The training loop, shared by stage two, fine-tuning and retrieval, each of which is a `Task`."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import best_device
from jzi.errors import ConfigError, ModelError, TrainingError, first_line
from jzi.store.plain import share_text
from jzi.train.compiled import CompiledStep, NotCompiledError, wants_compiled
from jzi.train.config.training import RunConfig
from jzi.train.run import Checkpointer, Metrics, TrainingRun
from jzi.train.schedule import Schedule, learning_rate_factor
from jzi.train.task import Batch, Task


class TrainingLoop:
    """Runs a task: steps, validation, selection of the best epoch, saved states, metrics, interrupts.

    Args:
        task: the task.
        run: the run on disk.
        progress: whether to show a progress bar.
    """

    def __init__(self, task: Task, run: TrainingRun, *, progress: bool = True) -> None:
        self.task, self.run, self.accelerator, self.config = task, run, task.accelerator, task.config
        config = self.config
        optimizer = torch.optim.AdamW(
            [group for group in task.parameter_groups() if group["params"]],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=task.fused,
        )
        self.steps = task.steps_per_epoch()
        self.total = task.total_steps()
        total = max(1, self.total)
        warm, final = config.schedule(total)
        compiled = self._wants_compiled()
        self.schedule = Schedule(
            optimizer,
            lambda step: learning_rate_factor(step, total, warm, final),
            self.accelerator.device if compiled else None,
        )
        self.compiled = CompiledStep(task, optimizer, config.clip) if compiled else None
        self.model, self.optimizer = self.accelerator.prepare(task.network, optimizer)
        self.checkpointer = Checkpointer(run, config.save_every_s, due=task.check_every is None)
        self.show = progress and self.accelerator.is_main_process
        self.interrupts: list[int] = []

    def train(self, state: dict[str, Any]) -> int:
        """Train from a state to the last epoch.

        Args:
            state: the state to start from, as returned by `TrainingRun.resume`.

        Returns:
            Number of photos trained on, counted once per epoch.

        Raises:
            TrainingError: the loss, a weight or the loss of validation is not finite.
            ModelError: the folder cannot be written.
            KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
        """
        accelerator, config = self.accelerator, self.config
        start_trackers(accelerator, config)
        if "weights" in state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise ModelError(
                    f"the state in {self.run.train_folder} does not fit this training ({first_line(error)}): delete "
                    f"{self.run.folder} to train from scratch"
                ) from error
        photo_count = 0
        first, step, losses = state["epoch"], state["step"], list(state["losses"])
        bar = tqdm(
            total=self.total,
            initial=first * self.steps + step,
            unit="step",
            desc=self.task.label,
            disable=not self.show,
        )
        with bar, defer_interrupt() as self.interrupts:
            for epoch in range(first, config.epochs):
                if not step and self._any_process(accelerator.is_main_process and self.task.has_converged()):
                    self._save(config.epochs, 0, [])
                    break
                began = time.monotonic()
                photos = self._epoch(epoch, step, losses, bar)
                seconds = time.monotonic() - began
                photo_count += photos
                metrics: Metrics = {
                    "epoch": epoch + 1,
                    "loss": self.task.mean_loss(losses),
                    "learning_rate": self.schedule.rates[0],
                    "seconds": seconds,
                    "samples_per_s": photos / seconds,
                }
                if self._any_process(not self._is_finite()):
                    raise self._diverged("weights are not finite", epoch)
                if accelerator.is_main_process:
                    self._finish_epoch(epoch, metrics, bar)
                accelerator.wait_for_everyone()
                if self._any_process(math.isnan(metrics.get("val_loss", 0.0))):
                    raise self._diverged("validation loss is nan", epoch)
                step, losses = 0, []
                if self._any_process(bool(self.interrupts)):
                    self._save(epoch + 1, 0, [])
                    raise KeyboardInterrupt
        return photo_count

    def close(self, *, leave: bool = True) -> None:
        """Release the model and end the runs of trackers.

        Args:
            leave: whether to leave the process group; False if another loop follows.
        """
        del self.model, self.optimizer, self.compiled
        self.accelerator.free_memory()  # wrapped models must be freed before their process group
        self.accelerator.wait_for_everyone()
        if leave:
            self.accelerator.end_training()
        else:  # what follows is a run of its own
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers = []

    def _epoch(self, epoch: int, first: int, losses: list[float], bar: tqdm) -> int:
        """Run an epoch from step `first`, append the losses, and return the number of photos."""
        batches = self.task.batches(epoch, first)
        self.task.network.train()
        every, single_process = self.task.check_every, self.accelerator.num_processes == 1
        pending: list[Tensor] = []
        steps = min(self.steps, self.total - epoch * self.steps)
        photo_count = 0
        for step, batch in enumerate(batches, first):
            pending.append(self.step(batch))
            photo_count += batch.photos
            bar.update()
            last = step + 1 == steps
            check = last or len(pending) == every
            # Several processes must stop at the same step, so they only synchronize at checks; one may stop at any step
            synchronized = single_process or check
            stop = self._any_process(bool(self.interrupts)) if synchronized else False
            save = self._any_process(self.checkpointer.is_due()) if every and synchronized else False
            if check or stop or save:
                self._collect_losses(pending, losses, epoch)
                bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
                pending = []
            if (stop or save) and not last:
                self._save(epoch, step + 1, losses)
            if stop and not last:
                raise KeyboardInterrupt
        return photo_count

    def step(self, batch: Batch) -> Tensor:
        """Run one step of the optimizer, and return the mean loss, a scalar on the device."""
        loss = self._compiled_step(batch)
        loss = self._plain_step(batch) if loss is None else loss
        self.schedule.step()
        return loss

    def _compiled_step(self, batch: Batch) -> Tensor | None:
        """`step` as a compiled function; None if it is not compiled, or not for this batch."""
        if self.compiled is None or not self.compiled.is_ready or batch.sizes != [self.config.batch_size]:
            return None
        if not self.compiled.is_compiled and self.accelerator.is_main_process:
            tqdm.write("compiling the training step, which takes a minute or more", file=sys.stderr)
        try:
            return self.compiled(batch.parts[0])
        except NotCompiledError as error:
            self._report_not_compiled(error)
            self.compiled = None
            return None

    def _plain_step(self, batch: Batch) -> Tensor:
        count = sum(batch.sizes)
        losses = []
        for number, (part, size) in enumerate(zip(batch.parts, batch.sizes, strict=True), 1):
            last = number == len(batch.parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.task.loss(self.model, part)
                if len(batch.parts) > 1:
                    loss = loss * (size / count)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        if self.task.clips_values:
            self.accelerator.clip_grad_value_(self.model.parameters(), self.config.clip)
        else:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(losses[1:], losses[0])

    def _wants_compiled(self) -> bool:
        try:
            return wants_compiled(self.task)
        except NotCompiledError as error:
            self._report_not_compiled(error)
            return False

    def _report_not_compiled(self, error: NotCompiledError) -> None:
        if self.accelerator.is_main_process:
            name = f"{self.config.section}.compile"
            tqdm.write(f"jzi: {name} has no effect, training continues without it: {error}", file=sys.stderr)

    def _any_process(self, condition: bool) -> bool:
        """Whether the condition holds in any process; a collective operation, which all processes must call."""
        if self.accelerator.num_processes == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _collect_losses(self, pending: list[Tensor], losses: list[float], epoch: int) -> None:
        """Append the pending losses, averaged over processes; raise if one is not finite."""
        mean = self.accelerator.reduce(torch.stack(pending), "mean").tolist()
        if bad := [loss for loss in mean if not math.isfinite(loss)]:
            raise self._diverged(f"loss is {bad[0]}", epoch)
        losses += mean

    def _is_finite(self) -> bool:
        """Whether all weights are; a gradient can be nan where the loss is not, such as in the last step."""
        return bool(torch.stack([each.isfinite().all() for each in self.task.network.parameters()]).all())

    def _diverged(self, what: str, epoch: int) -> TrainingError:
        """The error of a training that has diverged; writes the weights of the best epoch."""
        if self.accelerator.is_main_process:
            self.task.write_best()
        kept = f"the best epoch so far is kept in {self.run.folder}" if self.run.metrics else "no epoch is complete"
        return TrainingError(
            f"the {what} in epoch {epoch + 1}: {kept}; train with a lower {self.config.section}.learning_rate into "
            "another folder"
        )

    def _finish_epoch(self, epoch: int, metrics: Metrics, bar: tqdm) -> None:
        """Validate if it is due, keep the weights if they are the best so far, and save the state if it is due."""
        if self.task.validates(epoch):
            self.task.network.eval()
            with torch.inference_mode():
                metrics |= self.task.validate()
            if math.isnan(metrics.get("val_loss", 0.0)):
                return  # `train` raises; these weights are not kept
            if self.run.is_best(metrics):
                self.task.keep_best()
        self.run.log(metrics)
        if self.task.check_every or epoch + 1 == self.config.epochs or self.checkpointer.is_due():
            self._save(epoch + 1, 0, [])
        self.accelerator.log(metrics, step=epoch + 1)
        recall = [f"{name} {share_text(value)}" for name, value in metrics.items() if name.startswith("recall")]
        if self.task.check_every and self.accelerator.is_main_process:
            line = [f"{self.task.milestone(epoch)}: loss {metrics['loss']:.3f}", *recall]
            bar.write(", ".join(line), file=sys.stderr)
        else:
            bar.set_postfix_str(", ".join([f"loss={metrics['loss']:.3f}", *recall[:1]]))

    def _save(self, epoch: int, step: int, losses: list[float]) -> None:
        if self.accelerator.is_main_process and not self.checkpointer.has_saved(epoch, step):
            self.task.write_best()
            self.checkpointer.save(self._state(epoch, step, losses))

    def _state(self, epoch: int, step: int, losses: list[float]) -> dict[str, Any]:
        position = {"epoch": epoch, "step": step, "losses": list(losses)}
        if epoch == self.config.epochs:  # the rest, three times the size of the network, is only needed to resume
            return position
        scaler = self.accelerator.scaler
        return {
            **position,
            **self.task.extra_state(),
            "weights": {name: value for name, value in self.task.network.named_parameters() if value.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.task.load_extra_state(state)
        with torch.no_grad():
            parameters = dict(self.task.network.named_parameters())
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def make_accelerator(config: RunConfig, folder: Path) -> Accelerator:
    """An Accelerator with the device, precision and trackers of the settings.

    Args:
        config: the settings of training.
        folder: the model folder; trackers write to its folder train/.

    Raises:
        ConfigError: the precision or a tracker is not available, or the processes cannot share a batch.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.trackers if name not in available]:  # Accelerate would ignore them
        raise ConfigError(
            f"{config.section}.trackers names {', '.join(missing)}, which is not installed: pip install it first"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    try:
        accelerator = Accelerator(
            cpu=best_device() == "cpu",
            mixed_precision=precision,
            log_with=list(config.trackers) or None,
            project_dir=str(folder / "train"),
        )
    except (ValueError, ImportError) as error:
        names = f"{config.section}.precision or {config.section}.trackers"
        raise ConfigError(f"{names} is not available here: {error}") from error
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"{config.section}.batch_size is {config.batch_size}: it must be a multiple of the number of processes, "
            f"{accelerator.num_processes}"
        )
    return accelerator


def start_trackers(accelerator: Accelerator, config: RunConfig) -> None:
    """Start the trackers of the settings, and log the settings to them; those of TensorBoard take no lists."""
    if config.trackers:
        simple = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in asdict(config).items()
            if name != "trackers"
        }
        accelerator.init_trackers("jzi", config=simple)


@contextlib.contextmanager
def defer_interrupt() -> Iterator[list[int]]:
    """Defer the first Ctrl-C, so the current step can be completed and saved; the second one raises immediately.

    Yields a list to which the number of the deferred signal is appended. Has no effect outside of the main thread, or
    if the process ignores Ctrl-C.
    """
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()  # only the main thread may set signal handlers
    before = signal.getsignal(signal.SIGINT)
    if not main or before is signal.SIG_IGN:
        yield received
        return
    signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
