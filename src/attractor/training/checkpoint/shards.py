"""The training state in shards: PyTorch's distributed checkpoint.

With one process the steps of ``dcp.save`` and ``dcp.load`` are done here, because those functions warn about a missing
process group at every call.
"""

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from attractor.errors import CheckpointError
from attractor.training.checkpoint.ranks import short_reason


def save_shards(state: dict[str, Any], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Write ``state`` into ``folder``, on all ranks of ``group``."""
    writer = _ShardWriter(folder, sync_files=False)
    if group is not None:
        dcp.save(state, storage_writer=writer, process_group=group)
        return
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    [plan] = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plan), planner)
    written.wait()
    writer.finish(metadata, [written.value()])


def load_shards(state: dict[str, Any], folder: Path, group: dist.ProcessGroup | None, *, partial: bool) -> None:
    """Load shards into the tensors of ``state``, on all ranks of ``group``; see :func:`load` for ``partial``."""
    planner, reader = DefaultLoadPlanner() if partial else _ExactLoadPlanner(), dcp.FileSystemReader(folder)
    if group is not None:
        dcp.load(state, storage_reader=reader, planner=planner, process_group=group)
        return
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    [plan] = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
    [plan] = reader.prepare_global_plan([plan])
    reader.read_data(planner.finish_plan(plan), planner).wait()


class _ShardWriter(dcp.FileSystemWriter):
    """Reports why writing failed on the rank where it failed: other ranks receive the error without its causes."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise CheckpointError(short_reason(error)) from error


class _ExactLoadPlanner(DefaultLoadPlanner):
    """Refuses a state that lacks a saved entry. PyTorch refuses only a state with too many."""

    def create_local_plan(self) -> Any:
        assert self.metadata is not None
        if missing := sorted(self.metadata.state_dict_metadata.keys() - self.state_dict.keys()):
            raise CheckpointError(f"it has {missing[0]}, which this run has not")
        return super().create_local_plan()
