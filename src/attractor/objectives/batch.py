"""Splitting a batch among the processes of a distributed run."""

from attractor.errors import ConfigError


def split_batch(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return ``(first, num)``, the slice of a batch that belongs to this rank.

    Raises
    ------
    ConfigError
        When ``batch_size`` is not a multiple of ``world_size``.
    """
    if batch_size % world_size:
        raise ConfigError(
            f"batch_size={batch_size} cannot be divided among {world_size} processes; "
            f"make it a multiple of {world_size}, or start another number of processes."
        )
    num = batch_size // world_size
    return rank * num, num
