"""Writing checkpoints: a copy in memory at once, the rest in a thread of its own."""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from attractor.errors import CheckpointError, LostRankError
from attractor.training.checkpoint import folder
from attractor.training.checkpoint.folder import FORMAT, Checksums, checkpoints_in
from attractor.training.checkpoint.ranks import FULL, LOST, agree, rank_and_world, reason

# One process without torch.distributed is what we mean. For good, since a thread that catches warnings catches those of all.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class Checkpoints:
    """Writes the checkpoints of a run, and keeps the newest.

    Leaving it as a context, for whatever reason, waits for the last one.

    Parameters
    ----------
    out
        The run's folder; what an interrupted run left half written in it goes.
    describe
        What ``run.json`` says.
    save_model
        Writes given weights into a folder, from which a model for inference can be loaded; called on rank 0, in a thread.
    keep
        How many checkpoints stay.
    group
        All ranks, over gloo, and used for nothing else: a thread's messages must not mix with those of training. ``None`` in
        one process.
    """

    def __init__(
        self,
        out: Path,
        *,
        metadata: dict[str, Any],
        save_model: Callable[[dict[str, Tensor], Path], None],
        max_checkpoints: int = 2,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.out, self.metadata, self.save_model, self.max_checkpoints, self.group = (
            out,
            metadata,
            save_model,
            max_checkpoints,
            group,
        )
        self.rank, self.world = rank_and_world(group)
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        fast = torch.cuda.is_available()
        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=fast,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=fast,
            )
        )
        self.writing: Future[None] | None = None
        if self.rank == 0:
            self._tidy()

    def save(
        self,
        step: int,
        *,
        state: dict[str, Any],
        own: dict[str, Tensor],
        scalars: dict[str, float],
        weights: dict[str, Tensor],
    ) -> None:
        """Copy everything into memory and begin to write ``out/step-NNNNNNNN``, on all ranks together.

        Parameters
        ----------
        state
            Nested dictionaries of tensors, DTensors and numbers, with the same names on all ranks. What is no DTensor is the
            same on all of them.
        own
            Tensors of this rank alone.
        scalars
            Numbers; those of rank 0 count.
        weights
            Whole weights for inference on rank 0, nothing elsewhere.

        Raises
        ------
        CheckpointError
            If the checkpoint before this one could not be written.
        LostRankError
            If that was because another rank is gone.
        """
        self.wait()
        copy: Any
        try:
            copy = self.stager.stage({"parts": (state, own, dict(scalars), weights)})
            copy = copy["parts"]
        except Exception as error:  # out of memory, say: the other ranks must hear of it, where they wait for this one
            copy = error
        self.writing = self.thread.submit(self._write, step, copy)

    def wait(self) -> None:
        """Return once the last checkpoint is in its place; raise, on all ranks, if it could not be written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except LostRankError:
            if kind is None:  # else training, which knows more, has found the same
                raise
        finally:
            self.stager.close()
            self.thread.shutdown()

    def _write(self, step: int, parts: tuple[Any, ...] | Exception) -> None:
        final = self.out / f"step-{step:08d}"
        part = self.out / f".part-{final.name}"
        try:
            agree(self.group, lambda: self._begin(part, parts))
            assert isinstance(parts, tuple)
            state, own, scalars, weights = parts
            dcp.save(
                state,
                storage_writer=_Writer(part / "training", sync_files=False),
                process_group=self.group,
                no_dist=self.group is None,
            )
            agree(self.group, lambda: self._write_rest(part, own, scalars, weights))
            found = agree(self.group, lambda: self._checksums(part))
            agree(self.group, lambda: self._place(part, final, found))
        except (Exception, CheckpointException) as error:
            if self.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
            kind = LostRankError if (why := reason(error)) == LOST else CheckpointError
            raise kind(self._failure(final, why)) from error

    def _begin(self, part: Path, parts: tuple[Any, ...] | Exception) -> None:
        if isinstance(parts, Exception):
            raise parts
        if self.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def _write_rest(
        self, part: Path, own: dict[str, Tensor], scalars: dict[str, float], weights: dict[str, Tensor]
    ) -> None:
        """Write what is not in shards."""
        save_tensors(own, part / f"rank-{self.rank:05d}.safetensors")
        if self.rank == 0:
            (part / "run.json").write_text(json.dumps({"format": FORMAT, **self.metadata}, indent=2) + "\n")
            training = {"world_size": self.world, "scalars": scalars}
            (part / "training.json").write_text(json.dumps(training, indent=2) + "\n")
            self.save_model(weights, part)

    def _checksums(self, part: Path) -> Checksums:
        """Return the checksums of all that this rank has written."""
        return folder.checksums(part, [name for name in folder.files(part) if _writer_of(name) == self.rank])

    def _place(self, part: Path, final: Path, found: list[Checksums]) -> None:
        if self.rank > 0:
            return
        folder.write_checksum_file(part, {name: value for each in found for name, value in each.items()})
        if final.exists():  # written again by a resumed run: the old one goes only once the new one is in its place
            final.rename(final.with_name(f"{final.name}-old"))
        part.rename(final)
        folder.sync_folder(self.out)
        self._tidy()

    def _tidy(self) -> None:
        """Remove what is half written, replaced, or too old."""
        found = checkpoints_in(self.out)
        replaced = [
            old for old in found if old.with_name(old.name.removesuffix("-old")) in found and old.name.endswith("-old")
        ]
        for old in [*replaced, *[each for each in found if each not in replaced][: -self.max_checkpoints]]:
            old.rename(old.with_name(f".part-{old.name}"))  # so that none is ever seen half removed
        for old in self.out.glob(".part-*"):
            shutil.rmtree(old)

    def _failure(self, final: Path, why: str) -> str:
        found = checkpoints_in(self.out)
        before = f"the newest in place, {found[-1].name}, is whole" if found else "there is none before it"
        return f"{final}: could not be written ({why}); {before}{'; make room and resume' if why == FULL else ''}."


class _Writer(dcp.FileSystemWriter):
    """Says why writing failed while that is known: what other ranks get of an error has lost its causes."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise CheckpointError(reason(error)) from error


def _writer_of(name: str) -> int:
    """Return the rank that writes a file."""
    if name.startswith("training/__"):
        return int(name.removeprefix("training/__").split("_")[0])
    return int(name[5:10]) if name.startswith("rank-") else 0


def save_weights(weights: dict[str, Tensor], into: Path) -> None:
    """Write ``model.safetensors``, which :func:`load_model` reads."""
    save_tensors(weights, into / "model.safetensors")


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write safetensors, which must not share memory as tied weights do."""
    sharing = Counter(v.untyped_storage().data_ptr() for v in tensors.values())
    alone = {k: v if sharing[v.untyped_storage().data_ptr()] == 1 else v.clone() for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in alone.items()}, file)
