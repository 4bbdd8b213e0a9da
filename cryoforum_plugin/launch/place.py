"""Which processes a run has, and which of them start here: in a shell, or as SLURM's `srun` tells."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryoforum_plugin.errors import SettingsError


@dataclass(frozen=True)
class Devices:
    """What to compute on: auto, cpu, cuda or cuda:N; how many of them on each of how many machines."""

    name: str = "auto"
    count: int = 1
    nodes: int = 1

    @property
    def world(self) -> int:
        """How many processes there are, one a device."""
        return self.count * self.nodes


@dataclass(frozen=True)
class Place:
    """Which process this is: rank of world on all machines, local_rank on this one, the node-th."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    host: str = field(default_factory=socket.gethostname)

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.world} on {self.host}"


@dataclass(frozen=True)
class Meeting:
    """Processes to start here, and where all of the run meet: the address of the first, a port there."""

    places: tuple[Place, ...]
    address: str
    port: int


def arrange(devices: Devices, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Find out what to start here. Raises SettingsError where that is not all that was asked for.

    On several machines the same command runs on each, once a machine or once a device: under `srun`, or with
    NODE_RANK, MASTER_ADDR and MASTER_PORT set by hand. Only `srun` sets SLURM_STEP_..., a job script has no such
    variables: it starts everything by itself.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    by_slurm = tasks > 1
    if by_slurm and tasks not in (devices.world, devices.nodes):
        raise SettingsError(
            f"srun started {tasks} processes of this command, but --devices {devices.count} --num-nodes {devices.nodes} "
            f"makes {devices.world}; start one for each device (--ntasks-per-node={devices.count}) or one for each node "
            "(--ntasks-per-node=1)"
        )
    node = int(environment.get("SLURM_NODEID" if by_slurm else "NODE_RANK", 0)) if devices.nodes > 1 else 0
    one_each = by_slurm and tasks == devices.world
    local = [int(environment["SLURM_LOCALID"])] if one_each else list(range(devices.count))
    if not (0 <= node < devices.nodes and max(local) < devices.count):
        raise SettingsError(
            f"this is process {max(local) + 1} on machine {node + 1}, but --devices {devices.count} --num-nodes "
            f"{devices.nodes} was asked for; start as many processes on every machine"
        )
    places = tuple(Place(node * devices.count + i, devices.world, i, node) for i in local)
    return Meeting(places, *_meeting_point(devices, by_slurm, environment))


def free_port(address: str = "") -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


def _meeting_point(devices: Devices, by_slurm: bool, environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port that all processes know without asking one another."""
    if by_slurm:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
        first = SLURMEnvironment.resolve_root_node_address(nodes)
        step = int(environment.get("SLURM_JOB_ID", 0)) * 7 + int(environment.get("SLURM_STEP_ID", 0))
        return environment.get("MASTER_ADDR", first), int(
            environment.get("MASTER_PORT", 15_000 + step % 15_000)
        )
    if devices.nodes == 1:
        return "127.0.0.1", free_port("127.0.0.1")
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise SettingsError(
            f"--num-nodes {devices.nodes}: the same command has to run on every machine; run it in a SLURM job, or set "
            f"{' and '.join(missing)} on each"
        )
    return environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
