"""`cryoforum-cryosparc`: train, predict and select on particles in cryoSPARC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from cryoforum_plugin import __version__
from cryoforum_plugin.cli.common import ErrorGroup
from cryoforum_plugin.settings import DEFAULT_VIEWS, PRESETS

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cryoforum-cryosparc")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Orientations with calibrated uncertainty for particles in cryoSPARC, as an external job.

    Log in once: python -m cryosparc.tools login --url URL
    """


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_source = _options(
    click.option("--url", help="Address of cryoSPARC  [default: CRYOSPARC_BASE_URL]."),
    click.option("--email", help="Whose login to use  [default: the only one]."),
    click.option("--project", required=True, help="P3 or 3."),
    click.option("--workspace", required=True, help="Where the external job goes, W1 or 1."),
    click.option("--job", required=True, help="Job whose particles to work on, J42 or 42."),
    click.option("--output", default="particles", show_default=True, help="Its output with particles."),
    click.option("--model-dir", type=click.Path(path_type=Path), required=True, help="Model folder."),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N"),
    click.option(
        "--contrast", type=click.Choice(["check", "invert", "ignore"]), help="Protein bright or dark."
    ),
)
_training = _options(
    click.option("--symmetry", help="Point group  [default: C1]."),
    click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the particles."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of all random choices."),
    click.option("--config", type=click.Path(path_type=Path), help="Settings from a TOML or JSON file."),
    click.option(
        "--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Any other setting."
    ),
)
_views = click.option(
    "--views", type=click.Choice(["1", "2", "4", "8"]), default=str(DEFAULT_VIEWS), show_default=True,
    help="In-plane views of each image.",
)  # fmt: skip
_selection = _options(
    click.option("--min-confidence", type=click.FloatRange(0, 1), help="Smallest confidence."),
    click.option("--max-error", type=click.FloatRange(0, 180), help="Largest expected error in degrees."),
    click.option("--keep", type=click.FloatRange(0, 1, min_open=True), help="Keep this fraction."),
    click.option(
        "--auto", is_flag=True, help="Choose the confidence that makes the reconstruction clearest."
    ),
    click.option(
        "--queue-reconstruction", is_flag=True, help="Queue a homogeneous reconstruction of the result."
    ),
    click.option("--lane", help="Lane of the reconstruction  [default: the master itself]."),
)


@main.command()
@_source
@_training
def train(**options: Any) -> None:
    """Learn orientations from refined particles."""
    _run(options, train=True, predict=False)


@main.command()
@_source
@_views
@_selection
def predict(**options: Any) -> None:
    """Give particles uncertainties and predicted poses; with a criterion also select."""
    _run(options, train=False)


@main.command()
@_source
@_views
@_selection
def select(**options: Any) -> None:
    """Select again among particles that were predicted with this model, without predicting again."""
    if _criteria(options) is None:
        raise click.UsageError("no criterion: give --min-confidence, --max-error, --keep or --auto")
    _run(options, train=False, again=True)


@main.command()
@_source
@_training
@_views
@_selection
def pipeline(**options: Any) -> None:
    """Train on the particles, predict them, select (--auto without a criterion)."""
    options["auto"] = options["auto"] or _criteria(options) is None
    _run(options, train=True)


def _criteria(options: dict[str, Any]) -> Any:
    """Criteria of a selection, None where there are none."""
    from cryoforum_plugin.confidence.selection import Criteria

    criteria = Criteria(
        options["min_confidence"],
        options["max_error"],
        options["keep"],
        auto=options["auto"],
        balance_halves=True,
    )
    return criteria if criteria.any() else None


def _settings(options: dict[str, Any]) -> Any:
    from cryoforum_plugin.settings import assemble, option_values, parse_assignments, read_config

    return assemble(
        options["preset"],
        config=None if options["config"] is None else read_config(options["config"]),
        options=option_values(options),
        assignments=parse_assignments(options["assignments"]),
    )


def _run(options: dict[str, Any], train: bool, predict: bool = True, again: bool = False) -> None:
    from cryoforum_plugin.prediction.run import PredictOptions
    from cryosparc_job.job.steps import Request, Source, run

    source = Source(*(options[name] for name in ("project", "workspace", "job", "output", "url", "email")))
    request = Request(
        source,
        options["model_dir"],
        train=_settings(options) if train else None,
        predict=predict,
        again=again,
        options=PredictOptions(int(options.get("views", DEFAULT_VIEWS)), contrast=options["contrast"]),
        criteria=_criteria(options) if predict else None,
        device=options["device"],
        queue=bool(options.get("queue_reconstruction")),
        lane=options.get("lane"),
    )
    click.echo(f"done: {run(request)}")


if __name__ == "__main__":
    main()
