"""`cryoforum watch`: predict new particles as they appear."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.cli.common import (
    INPUT_FILE,
    OUTPUT_PATH,
    contrast_options,
    data_root_option,
    device_option,
    json_option,
    overwrite_option,
    precision_option,
    quiet_option,
    write_json,
)
from cryoforum_plugin.cli.options import prediction_choices, prediction_options


@click.command(name="watch")
@click.argument("source", type=INPUT_FILE, metavar="TABLE|FOLDER")
@click.option("--model", "model_dir", type=INPUT_FILE, required=True, metavar="MODEL_DIR", help="The model.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_PATH,
    required=True,
    help="Table that grows, of the kind of those that are read.",
)
@click.option(
    "--interval", type=click.FloatRange(0), default=10.0, show_default=True, metavar="SECONDS",
    help="Between looks; a table is read when it was the same for so long.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Predict what is there now, and end.")
@click.option(
    "--until-idle", type=click.FloatRange(0), metavar="SECONDS", help="End when nothing new came for so long."
)
@click.option(
    "--patience", type=click.FloatRange(0), default=600.0, show_default=True, metavar="SECONDS",
    help="How long images may be missing without a warning.",
)  # fmt: skip
@click.option(
    "--pattern",
    metavar="GLOB",
    help="Of a FOLDER, only tables whose name or path matches, as 'job*/particles.star'.",
)
@prediction_options
@contrast_options
@data_root_option
@device_option
@precision_option
@json_option
@overwrite_option
@quiet_option
def command(source: Path, model_dir: Path, output: Path, **options: Any) -> None:
    """Predict particles as they appear in a TABLE that grows, or in tables of a FOLDER and all below it.

    Each particle is predicted once and added to the output, which is replaced whole. The same command again goes on.
    """
    from cryoforum_plugin import formats
    from cryoforum_plugin.network.device import choose_device, choose_precision
    from cryoforum_plugin.network.model import load_model
    from cryoforum_plugin.watching.claim import identity_of
    from cryoforum_plugin.watching.output import opened
    from cryoforum_plugin.watching.repeats import told_once
    from cryoforum_plugin.watching.rounds import Watcher, WatchOptions
    from cryoforum_plugin.watching.sources import Sources
    from cryoforum_plugin.watching.stopping import Stopped, signals

    choices = prediction_choices(options)
    watching = WatchOptions(options["interval"], options["patience"], options["once"], options["until_idle"])
    own = {Path(os.path.realpath(path)) for path in formats.files_of(output)}
    sources = Sources(source, formats.suffixes_like(output), own, watching.interval_s, options["pattern"])
    _check(sources, options["pattern"])
    device = choose_device(options["device"])
    precision = choose_precision(options["precision"], device)
    root, started = options["data_root"], time.monotonic()
    try:
        with signals() as handling, told_once():
            model = load_model(model_dir, device)
            with opened(output, identity_of(model_dir, choices), root, options["overwrite"]) as growing:

                def show(figures: dict[str, Any]) -> None:
                    figures["seconds"] = round(time.monotonic() - started, 3)
                    write_json(options["json_file"], figures, overwrite=True)
                    click.echo(_line(figures))

                Watcher(
                    sources, growing, model, device, precision, choices, watching, root, show, handling
                ).run()
                click.echo(f"{growing.count} particles in {output}" if growing.count else "no particles yet")
    except Stopped as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        click.echo(f"cryoforum: stopped by {signal.Signals(stopped.number).name}", err=True)
        sys.exit(128 + stopped.number)


def _check(sources: Any, pattern: str | None) -> None:
    """Refuse what cannot be meant: a table of the other program, itself, a pattern for one table."""
    from cryoforum_plugin import formats
    from cryoforum_plugin.errors import ParticleFileError

    given = sources.given
    if not given.is_dir() and formats.is_table(given) and given.suffix.lower() not in sources.suffixes:
        raise ParticleFileError(
            f"{given}: cannot be watched into a table of another kind; give an output that ends in {given.suffix}"
        )
    if pattern is not None and not sources.is_folder:
        raise click.UsageError("--pattern is for a folder")
    if Path(os.path.realpath(given)) in sources.own:
        raise click.UsageError("the output must not be the table that is read")


def _line(figures: dict[str, Any]) -> str:
    """One round in a line."""
    new = figures["new"]
    parts = [f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {new['n']} new particles, {figures['n']} in all"]
    if new["median_expected_error_deg"] is not None:
        parts.append(f"median expected error {new['median_expected_error_deg']:.2f} deg")
    parts.append(f"{100 * new['fraction_confidence_above_half']:.0f} % with confidence above 0.5")
    if new["unusable"]:
        parts.append(f"{new['unusable']} unusable")
    if figures["waiting"]:
        parts.append(f"{figures['waiting']} waiting for images")
    return "; ".join(parts)
