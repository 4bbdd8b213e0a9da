"""RELION_OUTPUT_NODES.star: what a job made, in words that RELION 3.1, 4 and 5 understand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.errors import ParticleFileError
from relion_external.star import StarDocument, Table, new_table, quote
from relion_external.star_reader import read_star

OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
_PARTICLES_BY_VERSION = {4: "ParticlesData", 5: "ParticleGroupMetadata"}


@dataclass(frozen=True)
class NodeKind:
    """The label of RELION 4 and later, whose first token decides where Browse shows it, and 3.1's number."""

    label: str
    number: int


HALF_MAP = NodeKind("DensityMap.mrc.relion.halfmap.cryoforum", 10)
REFERENCE = NodeKind("DensityMap.mrc.relion.cryoforum", 6)
LOG_FILE = NodeKind("LogFile.pdf.relion.cryoforum", 13)


def particles_kind(folder: Path) -> NodeKind:
    """Particles, named as the RELION that started the job in `folder` names them.

    The version is read from job_pipeline.star, and the first token of the input particles' label is taken
    over where it has one. Without that file (a plain shell): as RELION 5.
    """
    label = _PARTICLES_BY_VERSION[5]
    tables = _pipeline_tables(folder / "job_pipeline.star")
    nodes = next((t for t in tables if "rlnPipeLineNodeTypeLabel" in t), None)
    if nodes is not None:
        version = 5 if "rlnPipeLineNodeTypeLabelDepth" in nodes else 4
        inputs = [
            text.split(".")[0]
            for text in nodes.strings("rlnPipeLineNodeTypeLabel")
            if text.split(".")[0] in _PARTICLES_BY_VERSION.values()
        ]
        label = inputs[0] if inputs else _PARTICLES_BY_VERSION[version]
    return NodeKind(f"{label}.star.relion.cryoforum", 3)


def write_output_nodes(folder: Path, nodes: Sequence[tuple[str, NodeKind]]) -> None:
    """Write the nodes file of the job in `folder`; names are relative to it, and written as RELION does.

    Label and number both: 3.1 reads the number, 4 and 5 the label.
    """
    columns = {
        "rlnPipeLineNodeName": [quote(os.path.relpath(folder / name)) for name, _ in nodes],
        "rlnPipeLineNodeTypeLabel": [kind.label for _, kind in nodes],
        "rlnPipeLineNodeType": [str(kind.number) for _, kind in nodes],
    }
    path = folder / OUTPUT_NODES
    document = StarDocument(path, (), (new_table(path, "output_nodes", columns),))
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(document.text())


def _pipeline_tables(path: Path) -> Sequence[Table]:
    """Tables of RELION's own list, () without it or when it is not readable."""
    try:
        return read_star(path).tables if path.is_file() else ()
    except ParticleFileError:
        return ()
