"""The devices of a run, and how its processes meet (Lightning Fabric)."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cryoforum_plugin.errors import ProcessError, SettingsError
from cryoforum_plugin.launch.place import Devices, Place
from cryoforum_plugin.network.device import Precision, choose_device

MEETING = timedelta(minutes=10)  # until all processes must have started, on a slow file system
# between two meetings: the others wait while the first calibrates. Lost processes are noticed otherwise (launch.run)
LONGEST = timedelta(days=2)
# the processes compute the same batch statistics; sending them in evaluation too would need as many steps in each
_NEW_NAME = "forward_sync_buffers"  # from torch 2.13 on
_UNSENT_BUFFERS: dict[str, Any] = {
    _NEW_NAME if _NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers": False
}


def check_devices(devices: Devices) -> torch.device:
    """Device of the first process. Raises SettingsError where not all of `devices` are there."""
    device = choose_device(devices.name)
    if device.type == "cuda" and devices.count > 1:
        if devices.name.startswith("cuda:"):
            raise SettingsError(
                f"--device {devices.name} is one device; for {devices.count} devices give --device cuda"
            )
        found = torch.cuda.device_count()
        if found < devices.count:
            raise SettingsError(
                f"--devices {devices.count}: torch sees {found} CUDA device{'s' if found != 1 else ''} here; ask for fewer "
                "devices, or give this program more (CUDA_VISIBLE_DEVICES; under SLURM --gpus-per-node, not --gpus-per-task)"
            )
    return device


def parent_device(devices: Devices) -> torch.device:
    """Device of the program that was started: the CPU where it only watches processes that have the devices.

    Raises SettingsError where not all of `devices` are there.
    """
    device = check_devices(devices)
    return device if devices.world == 1 else torch.device("cpu")


def make_fabric(devices: Devices, precision: Precision, place: Place | None = None) -> Fabric:
    """Fabric of this process, met with those of the other places where there are any.

    Raises SettingsError where the device does not exist, ProcessError where the others do not come.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    place = place or Place()
    device = check_devices(devices)
    if place.world == 1:
        one: Any = [device.index] if devices.name.startswith("cuda:") else 1
        return Fabric(accelerator=device.type, devices=one, precision=precision)
    backend = "nccl" if device.type == "cuda" else "gloo"
    _meet(place, backend)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices.count,
        num_nodes=devices.nodes,
        precision=precision,
        strategy=DDPStrategy(process_group_backend=backend, timeout=LONGEST, **_UNSENT_BUFFERS),
        plugins=[LightningEnvironment()],
    )
    fabric.launch()
    return fabric


def _meet(place: Place, backend: str) -> None:
    """Wait for the other processes, not for ever; Fabric alone has one time limit for this and everything later."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            host, port, place.world, place.rank == 0, timeout=MEETING
        )
    except RuntimeError as error:
        raise ProcessError(
            f"{place} did not meet the others at {host}:{port} within {MEETING.seconds // 60} minutes ({error}); check "
            "that all were started and may connect to one another"
        ) from error
    if backend == "nccl":
        torch.cuda.set_device(place.local_rank)
    distributed.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=LONGEST
    )
