"""Write checkpoints: a copy in memory at once, the files in a thread."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from attractor.errors import CheckpointError, LostRankError
from attractor.files import manifest, remove_leftovers, sync_folder
from attractor.files.manifest import Checksums
from attractor.training.checkpoint.folder import FORMAT, LATEST, checkpoints_in
from attractor.training.checkpoint.ranks import FULL, LOST, rank_and_size, run_on_all_ranks, short_reason


class Checkpoints:
    """Write the checkpoints of a run, and keep the newest ones.

    A context manager: at its end it waits until the last checkpoint is written.

    Parameters
    ----------
    out
        The run's folder. Incomplete checkpoints of an interrupted run are removed from it.
    metadata
        The content of ``run.json``.
    save_model
        Writes weights into a folder, from which a model for inference can be loaded. Called on rank 0, in a thread.
    group
        All ranks, over gloo, for the exclusive use of this object. None for one process.
    """

    def __init__(
        self,
        out: Path,
        metadata: dict[str, Any],
        save_model: Callable[[dict[str, Tensor], Path], None],
        max_checkpoints: int = 2,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.out, self.metadata, self.save_model = out, metadata, save_model
        self.max_checkpoints, self.group = max_checkpoints, group
        self.rank, self.size = rank_and_size(group)
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        on_gpu = torch.cuda.is_available()
        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )
        self.writing: Future[None] | None = None
        if self.rank == 0:
            self._remove_old()

    def save(
        self,
        step: int,
        *,
        state: dict[str, Any],
        rank_tensors: dict[str, Tensor],
        scalars: dict[str, float],
        weights: dict[str, Tensor],
    ) -> None:
        """Copy everything into memory and start to write ``out/step-NNNNNNNN``. All ranks must call this.

        Parameters
        ----------
        state
            Nested dictionaries of tensors, DTensors and numbers, with the same names on all ranks. Plain tensors and
            numbers must be equal on all ranks.
        rank_tensors
            Tensors of this rank.
        scalars
            Numbers. Those of rank 0 are written.
        weights
            Unsharded weights for inference on rank 0, nothing on other ranks.

        Raises
        ------
        CheckpointError
            If the checkpoint before this one could not be written.
        LostRankError
            If the reason is that another rank has ended.
        """
        self.wait()
        copy: Any
        try:
            copy = self.stager.stage({"parts": (state, rank_tensors, dict(scalars), weights)})
            copy = copy["parts"]
        except Exception as error:  # such as out of memory: raised in the thread, where other ranks wait for this one
            copy = error
        self.writing = self.thread.submit(self._write, step, copy)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. If it could not be written, raise the error, on all ranks."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except LostRankError:
            if kind is None:  # otherwise the loop has already raised a better error for the same reason
                raise
        finally:
            self.stager.close()
            self.thread.shutdown()

    def _write(self, step: int, parts: tuple[Any, ...] | Exception) -> None:
        from torch.distributed.checkpoint.api import CheckpointException

        from attractor.training.checkpoint.shards import save_shards

        final = self.out / f"step-{step:08d}"
        part = self.out / f".part-{final.name}"
        try:
            run_on_all_ranks(self.group, lambda: self._create_folder(part, parts))
            assert isinstance(parts, tuple)
            state, rank_tensors, scalars, weights = parts
            save_shards(state, part / "training", self.group)
            run_on_all_ranks(self.group, lambda: self._write_other_files(part, rank_tensors, scalars, weights))
            checksums = run_on_all_ranks(self.group, lambda: self._own_checksums(part))
            run_on_all_ranks(self.group, lambda: self._publish(part, final, checksums))
        except (Exception, CheckpointException) as error:
            if self.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
            reason = short_reason(error)
            raise (LostRankError if reason == LOST else CheckpointError)(self._failure(final, reason)) from error

    def _create_folder(self, part: Path, parts: tuple[Any, ...] | Exception) -> None:
        if isinstance(parts, Exception):
            raise parts
        if self.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def _write_other_files(
        self, part: Path, rank_tensors: dict[str, Tensor], scalars: dict[str, float], weights: dict[str, Tensor]
    ) -> None:
        save_tensors(rank_tensors, part / f"rank-{self.rank:05d}.safetensors")
        if self.rank == 0:
            (part / "run.json").write_text(json.dumps({"format": FORMAT, **self.metadata}, indent=2) + "\n")
            training = {"world_size": self.size, "scalars": scalars}
            (part / "training.json").write_text(json.dumps(training, indent=2) + "\n")
            self.save_model(weights, part)

    def _own_checksums(self, part: Path) -> Checksums:
        """Return the checksums of the files that this rank has written."""
        names = [name for name in manifest.list_files(part) if _rank_that_writes(name) == self.rank]
        return manifest.compute_checksums(part, names)

    def _publish(self, part: Path, final: Path, checksums: list[Checksums]) -> None:
        """Write ``checksums.json`` and rename the folder, on rank 0."""
        if self.rank > 0:
            return
        manifest.write_checksum_file(part, {name: value for each in checksums for name, value in each.items()})
        if final.exists():  # a resumed run has written this step again: keep the old one until the new one is in place
            final.rename(final.with_name(f"{final.name}-old"))
        part.rename(final)
        self._link_latest(final)
        sync_folder(self.out)
        self._remove_old()

    def _link_latest(self, final: Path) -> None:
        """Make ``latest`` a link to this checkpoint, unless something else has that name."""
        link, part = self.out / LATEST, self.out / f".part-{LATEST}"
        if link.is_symlink() or not link.exists():
            with suppress(OSError):  # some disks have no links
                part.unlink(missing_ok=True)
                part.symlink_to(final.name)
                part.replace(link)

    def _remove_old(self) -> None:
        """Remove checkpoints that are incomplete, replaced, or older than the newest ``max_checkpoints``."""
        found = checkpoints_in(self.out)
        replaced = [path for path in found if path.name.endswith("-old") and path.with_name(path.name[:-4]) in found]
        remaining = [path for path in found if path not in replaced]
        for path in [*replaced, *remaining[: -self.max_checkpoints]]:
            path.rename(path.with_name(f".part-{path.name}"))  # so that a half-removed folder is not a checkpoint
        remove_leftovers(self.out, of="")

    def _failure(self, final: Path, reason: str) -> str:
        """Return the sentence for a checkpoint that could not be written."""
        found = checkpoints_in(self.out)
        last = f"the last one, {found[-1].name}, is complete" if found else "there is no earlier one"
        advice = "; free some disk space and resume" if reason == FULL else ""
        return f"{final}: could not be written ({reason}); {last}{advice}."


def _rank_that_writes(name: str) -> int:
    """Return the rank that writes a file."""
    if name.startswith("training/__"):
        return int(name.removeprefix("training/__").split("_")[0])
    return int(name[5:10]) if name.startswith("rank-") else 0


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``, which :func:`load_model` reads."""
    save_tensors(weights, folder / "model.safetensors")


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write safetensors. Tensors that share memory, such as tied weights, are copied, as the format requires."""
    counts = Counter(v.untyped_storage().data_ptr() for v in tensors.values())
    separate = {k: v if counts[v.untyped_storage().data_ptr()] == 1 else v.clone() for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in separate.items()}, file)
