"""The job folder, and what is read of the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoforum_plugin.errors import CryoForumError, HostError
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.host_job.record import JobRecord
from cryoforum_plugin.particles import ParticleSet
from relion_external.job.command_line import parameter
from relion_external.job.parameters import Job


class Workspace(JobRecord):
    """A run of `job` in its folder.

    made : names of the outputs for RELION, in order. tables : particles by file name, for the report.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.o, vars(job))
        self.job = job
        self.made: list[str] = []
        self.tables: dict[str, ParticleSet] = {}

    def path(self, name: str) -> Path:
        """Path of an output."""
        return self.folder / name


def read_here(path: Path) -> ParticleSet:
    """Read particles of this project. Raises HostError where their image stacks are not in it."""
    particles = read_particles(path)
    missing = [stack for stack in particles.stacks if not stack.is_file()]
    if missing:
        raise HostError(
            f"{path}: {len(missing)} of {len(particles.stacks)} image stacks are missing, {missing[0]} first; image "
            "names start from the project folder, so for particles of another project link its folders into this "
            "one, or Import them here"
        )
    return particles


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in errors which parameter they come from."""
    try:
        yield
    except CryoForumError as error:
        raise HostError(f"{parameter(name)}: {error}") from error
