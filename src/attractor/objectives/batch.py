"""How a batch is divided among the processes of a distributed run."""

from attractor.errors import ConfigError


def split_batch(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return ``(first, num)``: the part of a batch that belongs to this rank.

    Raises
    ------
    ConfigError
        When the batch cannot be divided equally.
    """
    if batch_size % world_size:
        raise ConfigError(
            f"a batch of {batch_size} cannot be divided among {world_size} processes equally; "
            f"make batch_size a multiple of {world_size}, or start another number of processes."
        )
    num = batch_size // world_size
    return rank * num, num
