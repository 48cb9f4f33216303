"""The processes of one MPI job that run a call together.

mpi4py is imported when a call asks for ranks, and in the process that runs it only.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ["Ranks", "rank_here"]

# What launchers tell the processes that they start.
_RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "SLURM_PROCID",
)


def rank_here() -> int:
    """Return the rank that the launcher has given this process; 0 if it has not said."""
    for name in _RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0


class Ranks:
    """This process among those that run a call. Makes it one of an MPI job.

    Args:
        wanted: how many the call asks for.

    Raises:
        RuntimeError: there are more, or fewer, or no mpi4py.
    """

    def __init__(self, wanted: int) -> None:
        try:
            mpi: Any = import_module("mpi4py.MPI")  # which joins the job
        except (ImportError, RuntimeError) as error:
            raise RuntimeError(f"a call with ranks needs mpi4py and an MPI: {error}") from error
        self._mpi = mpi
        self.size: int = mpi.COMM_WORLD.Get_size()
        self.rank: int = mpi.COMM_WORLD.Get_rank()
        if self.size != wanted:
            raise RuntimeError(
                f"the call asks for {wanted} ranks, and the launcher has started {self.size}"
            )
        # Of our own: the function has the other.
        self._world: Any = mpi.COMM_WORLD.Dup()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self._world.Barrier()

    def abort(self) -> None:
        """End all ranks: they would wait for this one for ever."""
        self._mpi.COMM_WORLD.Abort(1)
