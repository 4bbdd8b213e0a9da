"""What processes do in the tests of launching; each ends by itself within a minute."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from cryoforum_plugin.atomic import atomic_directory, atomic_file
from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.launch import Place
from cryoforum_plugin.progress import progress

LOG = logging.getLogger("cryoforum")


def tell_place(place: Place) -> dict[str, Any]:
    """Where this is, said in every way there is."""
    LOG.warning("warning of %d", place.rank)
    LOG.info("information of %d", place.rank)
    print("printed")
    with progress("working", 3) as advance:
        advance(3, "done")
    names = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    return {"rank": place.rank, "world": place.world} | {name: os.environ[name] for name in names}


def fail(place: Place, how: str, rank: int, folder: Path) -> None:
    """Fail in process `rank` while every process writes a file and a folder."""
    (folder / f"pid-{place.rank}").write_text(str(os.getpid()))
    with (
        atomic_file(folder / f"file-{place.rank}") as file,
        atomic_directory(folder / f"folder-{place.rank}", []),
    ):
        file.write_text("half")
        (folder / f"begun-{place.rank}").touch()
        while len(list(folder.glob("begun-*"))) < place.world:
            time.sleep(0.02)
        if place.rank == rank or rank < 0:
            if how == "error":
                raise ModelError("the model is bad")
            if how == "unexpected":
                raise ValueError("odd value")
            if how == "unsendable":
                raise type("LocalError", (Exception,), {})("odd class")
            if how == "exit":
                os.write(2, b"words of a library\n")
                os._exit(3)
            os.kill(os.getpid(), signal.Signals[how])
        time.sleep(60)


def sum_ranks(place: Place, devices: Any) -> float:
    """Sum of the ranks, through Fabric."""
    import torch

    from cryoforum_plugin.launch.devices import make_fabric

    fabric = make_fabric(devices, "32-true", place)
    assert (fabric.global_rank, fabric.world_size) == (place.rank, place.world)
    return float(fabric.all_reduce(torch.tensor(float(place.rank)), reduce_op="sum"))


def lose_one(place: Place, devices: Any) -> None:
    """Process 1 dies while the others wait for it."""
    from cryoforum_plugin.launch.devices import make_fabric

    fabric = make_fabric(devices, "32-true", place)
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.barrier()
    time.sleep(60)
