"""The STAR document behind a particle set, the labels we read and write, and what we refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray
from relion_external.star import StarDocument, Table

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGIN_A = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
HALF_SET = "rlnRandomSubset"
CONFIDENCE = "rlnParticleFigureOfMerit"
EXPECTED_ERROR = "rlnAccuracyRotations"
EXPECTED_SHIFT_ERROR = "rlnAccuracyTranslationsAngst"
SCALARS = {  # label: field of Prediction
    CONFIDENCE: "confidence",
    EXPECTED_ERROR: "expected_error_deg",
    EXPECTED_SHIFT_ERROR: "expected_shift_error_A",
    "cryoforumCredibleRadius50": "credible_radius_50_deg",
    "cryoforumCredibleRadius90": "credible_radius_90_deg",
    "cryoforumCredibleRadius95": "credible_radius_95_deg",
    "cryoforumLambdaMax": "lambda_max",
    "cryoforumTrace": "trace",
    "cryoforumOutlierScore": "outlier_score",
    "cryoforumRightBasin": "right_basin",
    "cryoforumInTraining": "in_training",
}
ALTERNATIVE = tuple(f"cryoforumAlternative{name}" for name in ("Rot", "Tilt", "Psi"))
ALTERNATIVE_WEIGHT = "cryoforumAlternativeWeight"
BINGHAM = tuple(f"cryoforumBingham{i}" for i in range(1, 11))
PRIORS = ("rlnAngleRotPrior", "rlnAngleTiltPrior", "rlnAnglePsiPrior")
_VOLUME_LABELS = ("rlnCtfImage", "rlnCoordinateZ", "rlnOriginZAngst", "rlnOriginZ", "rlnTomoParticleName")


@dataclass(frozen=True)
class StarHost:
    """A STAR document and the number of its particle table; `[rows]` subsets that table only.

    rotation `(n, 4)`, shift_A `(n, 2)` : the poses the table holds, or None.
    """

    document: StarDocument
    index: int
    rotation: FloatArray | None = None
    shift_A: FloatArray | None = None

    @property
    def particles(self) -> Table:
        """The particle table."""
        return self.document.tables[self.index]

    def with_particles(self, table: Table) -> StarHost:
        """Return a copy with another particle table."""
        return replace(self, document=self.document.with_table(self.index, table))

    def __getitem__(self, rows: Any) -> StarHost:
        rotation = None if self.rotation is None else self.rotation[rows]
        shift_A = None if self.shift_A is None else self.shift_A[rows]
        return replace(self.with_particles(self.particles[rows]), rotation=rotation, shift_A=shift_A)


def find_particle_table(document: StarDocument) -> StarHost:
    """Return the host with its particle table: data_particles, or else the one with rlnImageName.

    Raises ParticleFileError if there is none, several, or if it holds no rows or no image names.
    """
    source = document.source
    named = [i for i, table in enumerate(document.tables) if table.name == "particles" and table.labels]
    with_images = [i for i, table in enumerate(document.tables) if "rlnImageName" in table]
    found = named or with_images
    if len(found) > 1:
        names = ", ".join(f"data_{document.tables[i].name}" for i in found)
        raise ParticleFileError(f"{source}: several particle blocks ({names}); keep one of them")
    if not found or found[0] not in with_images:
        raise ParticleFileError(f"{source}: no column _rlnImageName; {_advice(document)}")
    host = StarHost(document, found[0])
    if not len(host.particles):
        raise ParticleFileError(f"{source}: data_{host.particles.name} holds no particles")
    return host


def _advice(document: StarDocument) -> str:
    """Guess which of RELION's files was given instead of a particle file."""
    names = {table.name for table in document.tables}
    labels = {label for table in document.tables for label in table.labels}
    if "optimiser_general" in names or "model_general" in names:
        return "this is an optimiser or model file: give the run_data.star of the same job"
    if "rlnMicrographName" in labels or "micrographs" in names:
        return (
            "this looks like a list of micrographs or coordinates: give the particles.star of an Extract job"
        )
    return "give the particle file of an Extract, Select or Refine3D job"


def refuse_volumes(host: StarHost, dimensionality: float | None, unnumbered: bool) -> None:
    """Raise ParticleFileError for subtomograms; `unnumbered`: no image name has `index@`."""
    hint = [label for label in _VOLUME_LABELS if label in host.particles]
    if dimensionality == 3 or (unnumbered and hint):
        why = "rlnImageDimensionality is 3" if dimensionality == 3 else f"images without @, column _{hint[0]}"
        raise ParticleFileError(
            f"{host.document.source}: subtomograms ({why}); cryoforum works on 2D particle images only"
        )
