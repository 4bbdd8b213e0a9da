"""A RELION project of small ribosome particles that the real RELION makes, and the real pipeliner on it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import starfile
from chain import succeed

from cryoforum_plugin.demo.run import MAP_FILE
from relion_external.job.templates import own_path

MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
STATUS = {"0": "running", "1": "scheduled", "2": "succeeded", "3": "failed", "4": "aborted"}  # RELION 3.1
IMPORT, SELECT, REFINE, EXTERNAL = 0, 7, 10, 99
SMALL_TRAINING = "images.size_px=32 network.channels=16 training.learning_rate=8e-3"
PIXEL_SIZE_A = 6.0
THREADS = os.environ.get("OMP_NUM_THREADS", "2")


@dataclass(frozen=True)
class Project:
    """A project folder: ref.mrc, train.star and new.star, whose poses are true."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, training: int, new: int) -> Project:
        """Let `relion_project` make the particles, noise as strong as the signal over the whole box."""
        project = cls(folder)
        volume = np.asarray(mrcfile.read(MAP_FILE), dtype=np.float32)  # RELION 3.1 does not read float16
        with mrcfile.new(folder / "ref.mrc") as file:
            file.set_data(volume)
            file.voxel_size = PIXEL_SIZE_A
        succeed("simulate", folder / "ref.mrc", "-o", folder / "sim", "--count", training + new, "--snr", 1,
                "--low-pass", 14, "--quiet", "--seed", 3)  # fmt: skip
        project.run("relion_project", "--i", "ref.mrc", "--o", "particles", "--ang", "sim/particles.star", "--ctf",
                    "--add_noise", "--white_noise", 0.75, "--angpix", PIXEL_SIZE_A)  # fmt: skip
        made = starfile.read(folder / "particles.star")
        rows = made["particles"]
        for name, part in (("train", rows[:training]), ("new", rows[training:])):
            starfile.write({"optics": made["optics"], "particles": part}, folder / f"{name}.star")
        (folder / "default_pipeline.star").write_text("data_pipeline_general\n\n_rlnPipeLineJobCounter 1\n\n")
        return project

    def run(self, program: str, *arguments: object, timeout_s: float = 300) -> str:
        """Run a program in the project; return its output."""
        done = subprocess.run(
            [program, *map(str, arguments)], cwd=self.folder, env={**os.environ, **MPI}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def write_job(self, file: str, kind: int, options: Mapping[str, object]) -> None:
        """Write a job.star of RELION 3.1's job type `kind`."""
        rows = "".join(f'{key} "{value}"\n' for key, value in options.items())
        (self.folder / file).write_text(
            f"\ndata_job\n\n_rlnJobType {kind}\n_rlnJobIsContinue 0\n\ndata_joboptions_values\n\nloop_\n"
            f"_rlnJobOptionVariable #1\n_rlnJobOptionValue #2\n{rows}\n"
        )

    def schedule(self, kind: int, options: Mapping[str, object]) -> str:
        """Add a job to the pipeline; return its name, External/job002/."""
        self.write_job("new_job.star", kind, options)
        before = set(self.jobs())
        self.run("relion_pipeliner", "--addJobFromStar", "new_job.star")
        (name,) = set(self.jobs()) - before
        return name

    def start(self, name: str, timeout_s: float = 300) -> None:
        """Run a scheduled (or, again, a finished) job to its end."""
        self.run("relion_pipeliner", "--RunJobs", name, "--sec_wait_after", 1, timeout_s=timeout_s)

    def job(self, kind: int, options: Mapping[str, object]) -> str:
        """Schedule and run a job; return its name."""
        name = self.schedule(kind, options)
        self.start(name)
        return name

    def external(self, particles: str, **parameters: object) -> dict[str, object]:
        """Options of our External job; `particles`, then what stands on the Params tab."""
        options: dict[str, object] = {
            "fn_exe": own_path(),
            "in_part": particles,
            "nr_threads": THREADS,
            "do_queue": "No",
        }
        options |= {
            key: parameters.pop(key) for key in ("in_3dref", "in_mask", "other_args") if key in parameters
        }
        for number, (label, value) in enumerate(parameters.items(), 1):
            options |= {f"param{number}_label": label, f"param{number}_value": value}
        return options

    def import_particles(self, star: str) -> str:
        """Run RELION's Import on a particle STAR file; return the imported file."""
        name = self.job(
            IMPORT,
            {"do_other": "Yes", "do_raw": "No", "fn_in_other": star, "node_type": "Particles STAR file (.star)",
             "optics_group_particles": "", "do_queue": "No"},
        )  # fmt: skip
        return f"{name}{Path(star).name}"

    def jobs(self) -> dict[str, str]:
        """Status of every job by name, as RELION's own pipeline has it."""
        text = (self.folder / "default_pipeline.star").read_text()
        rows = re.findall(r"^(\w+/job\d+/)\s+\S+\s+\S+\s+(\d)\s*$", text, re.MULTILINE)
        return {name: STATUS[number] for name, number in rows}

    def nodes(self) -> dict[str, str]:
        """Type number of every node by name."""
        text = (self.folder / "default_pipeline.star").read_text()
        block = text.split("data_pipeline_nodes")[1].split("data_")[0]
        return dict(re.findall(r"^(\S+/\S+)\s+(\d+)\s*$", block, re.MULTILINE))

    def read(self, name: str) -> str:
        """Text of a file of the project."""
        return (self.folder / name).read_text()

    def wait_for(self, name: str, words: str, count: int = 1, timeout_s: float = 120) -> None:
        """Wait until a file of the project holds `words` (`count` times)."""
        end = time.monotonic() + timeout_s
        while not ((self.folder / name).exists() and self.read(name).count(words) >= count):
            assert time.monotonic() < end, f"{words!r} did not appear in {name}"
            time.sleep(0.1)


def image_names(path: Path) -> Sequence[str]:
    """Column rlnImageName of a STAR file."""
    return starfile.read(path)["particles"]["rlnImageName"].tolist()
