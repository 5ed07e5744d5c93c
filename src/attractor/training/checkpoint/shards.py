"""The training state in shards: PyTorch's distributed checkpoint, read without running code in it.

With one process the steps of ``dcp.save`` and ``dcp.load`` are done here, because those functions warn about a missing
process group at every call.
"""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from attractor.errors import CheckpointError
from attractor.files import member
from attractor.training.checkpoint.ranks import short_reason

# All that the index of shards, a pickle, may name: classes that hold its data and run nothing.
_INDEX_NAMES = {
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # of Python 3.13
}


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
    planner, reader = _LoadPlanner() if partial else _ExactLoadPlanner(), _ShardReader(folder)
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


class _ShardReader(dcp.FileSystemReader):
    """Reads the index without running code in it, and only files inside the folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self._get_metadata_path(kwargs.get("rank")))
        with file.open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError("its index holds something else")
        for entry in metadata.storage_data.values():
            member(file.parent, entry.relative_path, CheckpointError, file)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _INDEX_NAMES.get(module, ()):
            raise CheckpointError(f"its index names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class _LoadPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is no tensor")


class _ExactLoadPlanner(_LoadPlanner):
    """Refuses a state that lacks a saved entry. PyTorch refuses only a state with too many."""

    def create_local_plan(self) -> Any:
        assert self.metadata is not None
        if missing := sorted(self.metadata.state_dict_metadata.keys() - self.state_dict.keys()):
            raise CheckpointError(f"it has {missing[0]}, which this run has not")
        return super().create_local_plan()
