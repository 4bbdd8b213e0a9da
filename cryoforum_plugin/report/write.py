"""The report of a run, as an HTML page or a PDF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.report.collect import Run, collect_run
from cryoforum_plugin.report.html import render_html
from cryoforum_plugin.report.panels import Panel, panels_of
from cryoforum_plugin.report.pdf import write_pdf


@dataclass(frozen=True)
class Report:
    """What was found, and what is shown of it, in whatever form."""

    run: Run
    panels: tuple[Panel, ...]

    def write(self, *outputs: Path, overwrite: bool = True) -> None:
        """Write PDF for .pdf, else HTML. Raises OutputError when an output cannot be written."""
        for output in outputs:
            with atomic_file(output, overwrite) as temporary:
                if output.suffix.lower() == ".pdf":
                    write_pdf(self.run, self.panels, temporary)
                else:
                    temporary.write_text(render_html(self.run, self.panels), encoding="utf-8")


def prepare_report(
    directory: Path, tables: Mapping[str, ParticleSet] | None = None, data_root: Path | None = None
) -> Report:
    """Read a model directory or run folder and work out what to show; tables, data_root : see `collect_run`.

    Raises ModelError when there is nothing to show.
    """
    run = collect_run(directory, tables, data_root)
    return Report(run, tuple(panels_of(run)))


def write_report(
    directory: Path,
    *outputs: Path,
    overwrite: bool = True,
    tables: Mapping[str, ParticleSet] | None = None,
) -> None:
    """Prepare a report and write it; see `prepare_report` and `Report.write`."""
    prepare_report(directory, tables).write(*outputs, overwrite=overwrite)
