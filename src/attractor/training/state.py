"""The state of a run that changes from step to step, and how a checkpoint saves and restores it."""

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
from attractor.files.manifest import read_checksums, verify_files
from attractor.optim import matches, trapezoid
from attractor.training.checkpoint import Checkpoints, load, load_rank_tensors, load_scalars, read_run
from attractor.training.config import PRECISIONS, Objective, TrainConfig
from attractor.training.distributed import DistributedContext
from attractor.training.guard import Guard
from attractor.training.parallel import Unit, apply_ddp, apply_fsdp, averaged_model

# Settings that may differ in a resumed run: its length, its log and checkpoints, its guard, and how it uses several
# processes.
MAY_DIFFER = {"num_steps", "seconds", "log_every", "checkpoint_every", "max_checkpoints"}
MAY_DIFFER |= {"timeout_seconds", "guard", "parallel", "grad_reduce_dtype"}


class TrainingState:
    """Weights, their average, optimisers, counters, and the states of the objective and the guard.

    Attributes
    ----------
    model
        The model itself. Under FSDP its weights are sharded.
    forward
        The model to call: ``model``, or its DDP wrapper.
    step, seconds
        Steps made and their time, over all parts of a resumed run.
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
        self.model, self._objective, self._guard = model, objective, guard
        self._config, self._distributed = config, distributed
        self._average = averaged_model(model, config.ema_decay) if config.ema_decay else None
        reduce = PRECISIONS[config.grad_reduce_dtype]
        self.forward = model
        self._is_sharded = distributed.size > 1 and config.parallel == "fsdp"
        if self._is_sharded:
            apply_fsdp(model, units, distributed, reduce)
            if self._average:  # is never called, so its weights need no units
                apply_fsdp(self._average.module, (), distributed, reduce)
        elif distributed.size > 1:
            self.forward = apply_ddp(model, distributed, reduce)
        self.optimizers = config.optimizer.build(model)
        self._initial_rates = [(group["lr"], group["weight_decay"]) for group in self._groups]
        self.step, self.seconds, self._saved_step = 0, 0.0, -1

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1]."""
        by_steps = self.step / self._config.num_steps if self._config.num_steps else 0.0
        by_time = self.seconds / self._config.seconds if self._config.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def _groups(self) -> list[dict[str, Any]]:
        # Not stored: loading a checkpoint replaces the groups.
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def apply_schedule(self) -> float:
        """Set the learning rates and weight decays of the next step. Return its ``optimizer.lr``."""
        config, progress = self._config, self.progress
        lr_factor = self._guard.counters.lr_factor * trapezoid(
            progress, warmup_fraction=config.warmup_fraction, cooldown_fraction=config.cooldown_fraction
        )
        decay_factor = 1 + progress * (config.optimizer.final_weight_decay - 1)
        for group, (lr, weight_decay) in zip(self._groups, self._initial_rates, strict=True):
            group["lr"], group["weight_decay"] = lr * lr_factor, weight_decay * decay_factor
        return config.optimizer.lr * lr_factor

    def optimizer_step(self) -> None:
        """Update the weights and their average, which has the last embeddings of names, as in TRM's code."""
        for optimizer in self.optimizers:
            optimizer.step()
        if self._average:
            self._average.update_parameters(self.model)
            if pattern := self._config.optimizer.sign_pattern:
                averages = self._average.module.parameters()
                for (name, weight), average in zip(self.model.named_parameters(), averages, strict=True):
                    if matches(pattern, name):
                        average.detach().copy_(weight.detach())

    def trained_model(self) -> nn.Module:
        """Return the model with averaged weights, or the model if there is no average."""
        return self._average.module if self._average else self.model

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint, in the background, unless this step already has one."""
        if self._saved_step == self.step:
            return
        self._saved_step = self.step
        checkpoints.save(
            self.step,
            # Replicated state is the same on all ranks: one copy is enough.
            state=self._shared_state() if self._is_sharded or self._distributed.is_main else {},
            rank_tensors=self._rank_tensors(),
            scalars={"step": self.step, "seconds": self.seconds, **self._guard.scalars()},
            weights=self._inference_weights(),
        )

    def restore(self, checkpoint: Path, metadata: dict[str, Any]) -> None:
        """Continue from a checkpoint of a run with the same settings.

        Raises
        ------
        CheckpointError
            If a setting differs, or something is missing or damaged.
        """
        verify_files(checkpoint, read_checksums(checkpoint), ["run.json"])
        saved, current = _fixed_settings(read_run(checkpoint)), _fixed_settings(json.loads(json.dumps(metadata)))
        if changed := sorted(k for k in saved.keys() | current.keys() if saved.get(k) != current.get(k)):
            values = [f"{k.removeprefix('recipe.')} is {saved.get(k)} there and {current.get(k)} here" for k in changed]
            raise CheckpointError(
                f"{checkpoint}: {', '.join(values[:3])}{', …' * (len(values) > 3)}; "
                "resume with the same settings, or train into another folder."
            )
        scalars = load_scalars(checkpoint)
        try:
            self.step, self.seconds = int(scalars["step"]), float(scalars["seconds"])
            self._saved_step = self.step
            self._load_shared_state(checkpoint)
            ranks = load_rank_tensors(checkpoint)
            own = ranks[self._distributed.rank] if len(ranks) == self._distributed.size else ranks[0]
            torch.set_rng_state(own["random"])
            if torch.cuda.is_available() and "random_cuda" in own:
                torch.cuda.set_rng_state(own["random_cuda"])
            self._guard.load_state_dict(_remove_prefix("guard.", own), scalars)
            self._objective.load_state_dict([_remove_prefix("objective.", rank) for rank in ranks])
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint}: incomplete, cannot be resumed ({error}).") from error

    def roll_back(self, checkpoint: Path) -> None:
        """Restore the weights, their average and the optimisers. Steps, data and random numbers continue."""
        self._load_shared_state(checkpoint)
        self._guard.record_rollback()

    def _shared_state(self) -> dict[str, Any]:
        """Return the state that all ranks share: replicated, or each rank's shards of it."""
        model, optimizers = get_state_dict(self.model, self.optimizers)
        # Without the optimisers' learning rates and weight decays: they come from the settings.
        shared: dict[str, Any] = {"model": model, "optimizers": optimizers["state"]}
        if self._average:
            shared |= {"averaged": get_model_state_dict(self._average.module), "count": self._average.n_averaged}
        return shared

    def _load_shared_state(self, checkpoint: Path) -> None:
        shared = self._shared_state()
        load(checkpoint, shared, group=self._distributed.checkpoint_group)
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=shared["model"],
            optim_state_dict={**get_optimizer_state_dict(self.model, self.optimizers), "state": shared["optimizers"]},
        )
        if self._average:
            set_model_state_dict(self._average.module, shared["averaged"])
            self._average.n_averaged.copy_(shared["count"])

    def _rank_tensors(self) -> dict[str, Tensor]:
        """Return the state that each rank saves for itself: of its random numbers, its objective and its guard."""
        tensors = {f"objective.{k}": v for k, v in self._objective.state_dict().items()}
        tensors |= {f"guard.{k}": v for k, v in self._guard.state_dict().items()}
        tensors |= {"random": torch.get_rng_state()}
        return tensors | ({"random_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})

    def _inference_weights(self) -> dict[str, Tensor]:
        """Return the unsharded weights of :meth:`trained_model` on rank 0, and nothing on other ranks."""
        if self._is_sharded:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            return cast(dict[str, Tensor], get_model_state_dict(self.trained_model(), options=options))
        return self.trained_model().state_dict() if self._distributed.is_main else {}


def _remove_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fixed_settings(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings to ``{path: value}``, without those that a resumed run may change."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in MAY_DIFFER or path == "environment.":
            continue
        if isinstance(value, dict):
            flat |= _fixed_settings(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat
