"""What a set of particles is: arrays with one row a particle, the same for every host program."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Ctf:
    """Contrast transfer function parameters, each `(n,)`, in the conventions of `images.ctf`."""

    defocus_u_A: FloatArray
    defocus_v_A: FloatArray
    defocus_angle_deg: FloatArray
    voltage_kV: FloatArray
    spherical_aberration_mm: FloatArray
    amplitude_contrast: FloatArray
    phase_shift_deg: FloatArray

    def __getitem__(self, rows: Any) -> Ctf:
        return Ctf(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.defocus_u_A)


@dataclass(frozen=True)
class Prediction:
    """What the network says of each particle; any field but `confidence` may be None when unknown.

    rotation : `(n, 4)` XYZW quaternions, image frame to volume frame.
    shift_A : `(n, 2)` x, y; translating the image content by +shift centres the particle.
    confidence : `(n,)` in [0, 1], calibrated probability that the angular error is below the target.
    expected_error_deg, expected_shift_error_A : `(n,)`. credible_radius_50_deg, _90_deg, _95_deg : `(n,)` of the balls
        about the pose that hold the true one with that probability.
    lambda_max, trace : `(n,)` paper statistics (6) and (7), negative, more negative = more certain.
    bingham : `(n, 10)` upper triangle, row by row, of the calibrated 4x4 matrix A; p(q) ~ exp(-q'Aq).
    outlier_score : `(n,)` in [0, 1], higher = less like the training particles.
    right_basin : `(n,)` probability that a refined pose ended in the right basin at all.
    in_training : `(n,)` 1 where the model that predicted the particle had learned from it, else 0.
    alternative_rotation `(n, 4)`, alternative_weight `(n,)` : the next best orientation and its probability, 0
    (and `rotation`) where there is none worth naming.
    """

    confidence: FloatArray
    rotation: FloatArray | None = None
    shift_A: FloatArray | None = None
    expected_error_deg: FloatArray | None = None
    expected_shift_error_A: FloatArray | None = None
    credible_radius_50_deg: FloatArray | None = None
    credible_radius_90_deg: FloatArray | None = None
    credible_radius_95_deg: FloatArray | None = None
    lambda_max: FloatArray | None = None
    trace: FloatArray | None = None
    bingham: FloatArray | None = None
    outlier_score: FloatArray | None = None
    right_basin: FloatArray | None = None
    in_training: FloatArray | None = None
    alternative_rotation: FloatArray | None = None
    alternative_weight: FloatArray | None = None

    def __getitem__(self, rows: Any) -> Prediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in values.items()
        }
        return Prediction(**chosen)

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True)
class ParticleSet:
    """Particles of one table, host-neutral. Row i of every array is row i of the host's table.

    source : the file the table was read from.
    stacks : paths of the image stacks; `stack_index` `(n,)` points into it, `slice_index` `(n,)` is 0-based.
    pixel_size_A : `(n,)` pixel size of the images.
    rotation : `(n, 4)` XYZW quaternions mapping image-frame xyz to volume-frame xyz, or None.
    shift_A : `(n, 2)` x, y in Å, or None; translating the image content by +shift centres the particle.
    ctf : CTF parameters, or None when the table has none.
    contrast_sign : `(n,)` +1 where protein is meant to be bright, -1 where the host says it is dark.
    optics_group : `(n,)` host's group number. half_set : `(n,)` 1 or 2, 0 where unassigned.
    micrograph : `(n,)` integer label of the micrograph, -1 where unknown.
    origin : `(n,)` integer label shared by rows that show the same physical particle image
        (duplicates, symmetry-expanded copies).
    uid : `(n,)` uint64, the host's identity of the particle (row number where the host has none).
    prediction : what an earlier `predict` wrote into the table, or None.
    host : the adapter's own table, opaque to everyone else.
    box_px : size of the images where it is known without looking into the stacks, else None.
    """

    source: Path
    stacks: tuple[Path, ...]
    stack_index: IntArray
    slice_index: IntArray
    pixel_size_A: FloatArray
    rotation: FloatArray | None
    shift_A: FloatArray | None
    ctf: Ctf | None
    contrast_sign: FloatArray
    optics_group: IntArray
    half_set: IntArray
    micrograph: IntArray
    origin: IntArray
    uid: NDArray[np.uint64]
    prediction: Prediction | None
    host: Any
    box_px: int | None = None

    def __len__(self) -> int:
        return len(self.slice_index)

    def __getitem__(self, rows: Any) -> ParticleSet:
        """Rows by index array, slice or boolean mask; `host` is subset through its own `[rows]`."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            keep = field.name in ("source", "stacks", "box_px") or value is None
            values[field.name] = value if keep else value[rows]
        return ParticleSet(**values)

    def require_rotation(self) -> FloatArray:
        """Return `rotation`; raise ParticleFileError when the table has no orientations."""
        if self.rotation is None:
            raise ParticleFileError(
                f"{self.source}: no orientations, no 3D alignment (rlnAngleRot/Tilt/Psi or alignments3D/pose); "
                "take the particles of a finished 3D refinement"
            )
        return self.rotation

    def require_ctf(self) -> Ctf:
        """Return `ctf`; raise ParticleFileError when the table has no CTF parameters."""
        if self.ctf is None:
            raise ParticleFileError(
                f"{self.source}: no CTF parameters (rlnDefocusU/V/Angle or ctf/df1_A); "
                "use particles with estimated CTF, or pass --no-ctf if the images are CTF-corrected"
            )
        return self.ctf

    def with_poses(self, rotation: FloatArray, shift_A: FloatArray) -> ParticleSet:
        """Return a copy with other orientations `(n, 4)` and shifts `(n, 2)`."""
        return replace(self, rotation=rotation, shift_A=shift_A)
