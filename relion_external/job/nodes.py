"""RELION_OUTPUT_NODES.star: what a job made, in words that RELION 3.1, 4 and 5 understand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ParticleFileError
from relion_external.star import StarDocument, Table, new_table
from relion_external.star_reader import read_star
from relion_external.tokens import quote

OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
_PARTICLES_BY_VERSION = {4: "ParticlesData", 5: "ParticleGroupMetadata"}


@dataclass(frozen=True)
class NodeKind:
    """The label of RELION 4 and later, whose first token decides where Browse shows it, and 3.1's number."""

    label: str
    number: int


PARTICLES = NodeKind("ParticleGroupMetadata.star.relion.cryoforum", 3)
HALF_MAP = NodeKind("DensityMap.mrc.relion.halfmap.cryoforum", 10)
REFERENCE = NodeKind("DensityMap.mrc.relion.cryoforum", 6)
LOG_FILE = NodeKind("LogFile.pdf.relion.cryoforum", 13)


def write_output_nodes(folder: Path, nodes: Sequence[tuple[str, NodeKind]]) -> None:
    """Write the nodes file of the job in `folder`, for the RELION that started it (its job_pipeline.star).

    nodes : names relative to `folder`. RELION 3.1 gets numbers; 4 and 5 get labels and numbers, the particles'
    label as this version calls them, or as it calls the job's input. Without job_pipeline.star: as RELION 5.
    """
    listed = _listed_nodes(folder / "job_pipeline.star")
    particles = _particles_token(listed)
    labels = [kind.label.replace(PARTICLES.label.split(".")[0], particles) for _, kind in nodes]
    columns = {"rlnPipeLineNodeName": [quote(os.path.join(_in_project(folder), name)) for name, _ in nodes]}
    if listed is None or "rlnPipeLineNodeTypeLabel" in listed:
        columns["rlnPipeLineNodeTypeLabel"] = labels
    columns["rlnPipeLineNodeType"] = [str(kind.number) for _, kind in nodes]
    path = folder / OUTPUT_NODES
    document = StarDocument(path, (), (new_table(path, "output_nodes", columns),))
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(document.text())


def _in_project(folder: Path) -> str:
    """Path of the job folder as RELION writes it: from the project folder, which is the current one."""
    if folder.is_absolute():
        return os.path.relpath(folder.resolve(), Path.cwd().resolve())
    return os.path.normpath(folder)


def _particles_token(listed: Table | None) -> str:
    """First token of a particle node's label."""
    if listed is None or "rlnPipeLineNodeTypeLabel" not in listed:
        return _PARTICLES_BY_VERSION[5]
    tokens = [text.split(".")[0] for text in listed.strings("rlnPipeLineNodeTypeLabel")]
    known = [token for token in tokens if token in _PARTICLES_BY_VERSION.values()]
    return known[0] if known else _PARTICLES_BY_VERSION[5 if "rlnPipeLineNodeTypeLabelDepth" in listed else 4]


def _listed_nodes(path: Path) -> Table | None:
    """RELION's own list of the job's nodes; None without it or when it is not readable."""
    try:
        tables = read_star(path).tables if path.is_file() else ()
    except ParticleFileError:
        return None
    return next((table for table in tables if "rlnPipeLineNodeName" in table), None)
