"""A step of training as one compiled function: loss, gradients, clipping and optimizer.

A step of the decoder is hundreds of small operations, each of which Python launches. Compiled, neighbouring ones become
one, and on a GPU the whole step is a CUDA graph that is launched at once (torch's mode "reduce-overhead"). A graph has
fixed shapes and addresses: batches that are not full are computed without it, and what a step reads stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from jzi.errors import first_line
from jzi.train.task import Task

#: Full batches from which "auto" compiles on a GPU. To compile takes a minute (`benchmarks/RESULTS.md`, on a CPU core).
#: CUDA launches an operation in about 5 us, and a step has about 1000, so a minute is saved in about 10 000 steps.
WORTHWHILE = 10_000


class NotCompiledError(Exception):
    """The step cannot be compiled; the message is the reason."""


def wants_compiled(task: Task) -> bool:
    """Whether a task's step is to be compiled by its settings.

    Raises:
        NotCompiledError: the settings want it, but this run cannot; the message is the reason.
    """
    if task.compile == "auto":
        wanted = task.accelerator.device.type == "cuda" and task.full_batches() >= WORTHWHILE
        return wanted and not _obstacle(task)
    if task.compile and (obstacle := _obstacle(task)):
        raise NotCompiledError(obstacle)
    return task.compile


def _obstacle(task: Task) -> str:
    """Why a task cannot be compiled; empty if it can, as far as is known before."""
    accelerator = task.accelerator
    if accelerator.num_processes > 1:
        return "several processes average their gradients within a step"
    if accelerator.mixed_precision == "fp16":
        return "the scaler of fp16 reads every gradient; bf16 has none"
    if not task.full_batches():
        return f"there are fewer photos than a batch has, {task.config.batch_size}"
    from torch import _dynamo  # takes a second

    if not hasattr(_dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} does not compile gradients"
    return task.obstacle()


class CompiledStep:
    """The step of a task, compiled when it is first called.

    Args:
        task: the task, of one process; its `loss` reads `fixed_tensors` and the indices of a full batch.
        optimizer: fused AdamW whose learning rates are tensors (`Schedule`).
        clip: maximum norm of the gradient.
    """

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.task, self.optimizer, self.clip = task, optimizer, clip
        self._step: Callable[[Tensor], Tensor] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the optimizer has its moments, which its first step creates."""
        return bool(self.optimizer.state)

    @property
    def is_compiled(self) -> bool:
        """Whether a step has been compiled; the first takes long."""
        return self._step is not None

    def __call__(self, part: Tensor) -> Tensor:
        """Run one step of the optimizer.

        Args:
            part: a part of a batch as `Task.loss` takes it, always of the same shape.

        Returns:
            The loss, a scalar on the device.

        Raises:
            NotCompiledError: the step cannot be compiled; nothing has changed.
        """
        from torch import _dynamo

        torch.compiler.cudagraph_mark_step_begin()
        try:
            loss = self._first(part) if self._step is None else self._step(part)
        except _dynamo.exc.TorchDynamoException as error:
            raise NotCompiledError(first_line(error)) from error
        return loss.clone()  # the graph's own result is overwritten by the next step

    def _first(self, part: Tensor) -> Tensor:
        """Compile the step, and run it."""
        from torch import _dynamo

        self.fix_addresses()
        step = torch.compile(self.function(), fullgraph=True, dynamic=False, mode=self._mode)
        with _dynamo.config.patch(trace_autograd_ops=True):
            loss: Tensor = step(part)
        self._step = step
        return loss

    def fix_addresses(self) -> None:
        """Let a graph read all tensors but the indices where they are, instead of copying them before each step."""
        from torch import _dynamo

        for tensor in (*self._state(), *self.task.fixed_tensors()):
            _dynamo.mark_static_address(tensor, guard=False)

    def function(self) -> Callable[[Tensor], Tensor]:
        """The step as a function that can be compiled: `part` to the loss."""
        task, clip, adamw = self.task, self.clip, _fused_adamw()
        groups = [(group["params"], _options(group), self._moments(group)) for group in self.optimizer.param_groups]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

        def step(part: Tensor) -> Tensor:
            loss = task.loss(task.network, part)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            with torch.no_grad():
                for weights, options, (mean, square, count) in groups:
                    adamw(weights, [weight.grad for weight in weights], mean, square, count, **options)
            for parameter in parameters:
                parameter.grad = None
            return loss.detach()

        # torch compiles a code object 8 times at most; a process may train more often
        step.__code__ = step.__code__.replace()
        return step

    @property
    def _mode(self) -> str | None:
        return "reduce-overhead" if self.task.accelerator.device.type == "cuda" else None

    def _moments(self, group: dict[str, Any]) -> tuple[list[Tensor], ...]:
        states = [self.optimizer.state[parameter] for parameter in group["params"]]
        return tuple([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))

    def _state(self) -> list[Tensor]:
        """Everything that a step changes, and the learning rates."""
        groups = self.optimizer.param_groups
        moments = [tensor for group in groups for tensors in self._moments(group) for tensor in tensors]
        return [*(weight for group in groups for weight in group["params"]), *moments, *(each["lr"] for each in groups)]


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the fused AdamW of a group of parameters."""
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
    }


@cache
def _fused_adamw() -> Callable[..., None]:
    """torch's fused AdamW as an operation that a graph may contain.

    torch compiles the optimizer from its single operations only, which takes minutes on a CPU, and does not know the
    shapes of the fused kernel with a learning rate on the device. An operator of torch is registered once a process.
    """

    @torch.library.custom_op("jzi::fused_adamw", mutates_args=("weights", "means", "squares", "counts"))
    def fused_adamw(
        weights: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        counts: list[Tensor],
        lr: Tensor,
        beta1: float,
        beta2: float,
        weight_decay: float,
        eps: float,
    ) -> None:
        torch._foreach_add_(counts, 1)
        largest: list[Tensor] = []  # of AMSGrad, which is not used
        torch._fused_adamw_(
            weights, gradients, means, squares, largest, counts, lr=lr, beta1=beta1, beta2=beta2,
            weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    return fused_adamw
