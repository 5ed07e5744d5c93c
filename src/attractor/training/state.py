"""Everything of a run that moves, and how it goes into a checkpoint and comes back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from attractor.errors import CheckpointError
from attractor.training.checkpoint import Checkpoints, load, load_own, load_scalars, read_run
from attractor.training.config import PRECISIONS, Objective, TrainConfig
from attractor.training.distributed import DistributedContext
from attractor.training.guard import Guard
from attractor.training.parallel import Unit, apply_ddp, apply_fsdp, averaged

# What a resumed run may change of its settings: how long, how often, what it does when it diverges, and how it is spread over
# processes.
FREE = ("num_steps", "seconds", "log_every", "checkpoint_every", "max_checkpoints", "guard", "parallel", "grad_reduce_dtype")


class TrainingState:
    """Weights, their average, optimisers, an objective's position, and counters.

    Attributes
    ----------
    forward
        The model as it is to be called: replicated, divided, or itself.
    step, seconds
        Steps made, and the time they took, over all parts of a run.
    num_bad, skipped, rollbacks, rate
        Bad steps in a row, in all, returns to a checkpoint, and the factor on the learning rate that these have left.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        guard: Guard,
        config: TrainConfig,
        units: Sequence[Unit],
        distributed: DistributedContext,
    ) -> None:
        self.model, self._objective, self._guard, self._world = model, objective, guard, distributed
        self._averaged = averaged(model, config.ema_decay) if config.ema_decay else None
        reduce = PRECISIONS[config.grad_reduce_dtype]
        self.forward = model
        self._divided = distributed.size > 1 and config.parallel == "fsdp"
        if self._divided:
            apply_fsdp(model, units, distributed, reduce)
            if self._averaged:  # only its weights matter, so that all may be gathered as one
                apply_fsdp(self._averaged.module, (), distributed, reduce)
        elif distributed.size > 1:
            self.forward = apply_ddp(model, distributed, reduce)
        self.optimizers = config.optimizer.build(model)
        self._full = [(group["lr"], group["weight_decay"]) for group in self._groups]
        self.step, self.seconds, self._saved = 0, 0.0, -1
        self.num_bad, self.skipped, self.rollbacks, self.rate = 0, 0, 0, 1.0

    @property
    def in_trouble(self) -> bool:
        """Whether what would be saved now is nothing to go back to."""
        return self.num_bad > 0 or self._guard.is_drifting

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]  # new ones after loading

    def schedule(self, rate: float, decay: float) -> None:
        """Set all learning rates and weight decays to such shares of the full ones."""
        for group, (full_rate, full_decay) in zip(self._groups, self._full, strict=True):
            group["lr"], group["weight_decay"] = full_rate * rate, full_decay * decay

    def move(self) -> None:
        """Make the optimisers' step."""
        self.num_bad = 0
        for optimizer in self.optimizers:
            optimizer.step()
        if self._averaged:
            self._averaged.update_parameters(self.model)

    def skip_step(self) -> None:
        """Count a bad step instead."""
        self.num_bad, self.skipped = self.num_bad + 1, self.skipped + 1

    def result(self) -> nn.Module:
        """Return the model with averaged weights, or the model."""
        return self._averaged.module if self._averaged else self.model

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint, in the background, unless this step has one."""
        if self._saved == self.step:
            return
        self._saved = self.step
        checkpoints.save(
            self.step,
            # Of what all ranks have alike, one copy is enough.
            state=self._shared() if self._divided or self._world.is_main else {},
            own=self._own(),
            scalars={
                "step": self.step,
                "seconds": self.seconds,
                "num_bad": self.num_bad,
                "skipped": self.skipped,
                "rollbacks": self.rollbacks,
                "rate": self.rate,
            },
            weights=self._weights(),
        )

    def restore(self, checkpoint: Path, metadata: dict[str, Any]) -> None:
        """Go on from a checkpoint of a run with the same settings.

        Raises
        ------
        CheckpointError
            When a setting differs, or something is missing or damaged.
        """
        before, now = _fixed(read_run(checkpoint)), _fixed(json.loads(json.dumps(metadata)))
        if changed := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
            raise CheckpointError(
                f"{checkpoint}: {', '.join(changed)} differs from this run's; "
                "resume with the same settings, or train into another folder."
            )
        scalars = load_scalars(checkpoint)
        try:
            self.step, self.seconds = int(scalars["step"]), float(scalars["seconds"])
            self._saved = self.step
            self.num_bad, self.skipped = int(scalars["num_bad"]), int(scalars["skipped"])
            self.rollbacks, self.rate = int(scalars["rollbacks"]), float(scalars["rate"])
            self._load(checkpoint)
            ranks = load_own(checkpoint)
            mine = ranks[self._world.rank] if len(ranks) == self._world.size else ranks[0]
            torch.set_rng_state(mine["random"])
            if torch.cuda.is_available() and "random_cuda" in mine:
                torch.cuda.set_rng_state(mine["random_cuda"])
            self._guard.load_state_dict(_under("guard.", mine))
            self._objective.load_state_dict([_under("objective.", rank) for rank in ranks])
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint}: incomplete, cannot be resumed ({error}).") from error

    def roll_back(self, checkpoint: Path, rate: float) -> None:
        """Take the weights, their average and the optimisers' state of a checkpoint; all else goes on."""
        self._load(checkpoint)
        self.rollbacks, self.rate, self.num_bad = self.rollbacks + 1, self.rate * rate, 0
        self._guard.forget()

    def _shared(self) -> dict[str, Any]:
        """What all ranks have together."""
        model, optimizers = get_state_dict(self.model, self.optimizers)
        # Of the optimisers their moments alone: rates and decays are this run's settings.
        shared: dict[str, Any] = {"model": model, "optimizers": optimizers["state"]}
        if self._averaged:
            shared |= {"averaged": get_model_state_dict(self._averaged.module), "count": self._averaged.n_averaged}
        return shared

    def _load(self, checkpoint: Path) -> None:
        shared = self._shared()
        load(checkpoint, shared, group=self._world.writers)
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=shared["model"],
            optim_state_dict={**get_optimizer_state_dict(self.model, self.optimizers), "state": shared["optimizers"]},
        )
        if self._averaged:
            set_model_state_dict(self._averaged.module, shared["averaged"])
            self._averaged.n_averaged.copy_(shared["count"])

    def _own(self) -> dict[str, Tensor]:
        """What this rank has for itself."""
        own = {f"objective.{k}": v for k, v in self._objective.state_dict().items()}
        own |= {f"guard.{k}": v for k, v in self._guard.state_dict().items()}
        own |= {"random": torch.get_rng_state()}
        return own | ({"random_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})

    def _weights(self) -> dict[str, Tensor]:
        """Weights for inference, whole, on rank 0."""
        if self._divided:
            whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
            return cast(dict[str, Tensor], get_model_state_dict(self.result(), options=whole))
        return self.result().state_dict() if self._world.is_main else {}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fixed(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings to ``{path: value}``, without those that a resumed run may change."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in FREE or path == "environment.":
            continue
        if isinstance(value, dict):
            flat |= _fixed(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat
