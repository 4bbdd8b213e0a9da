"""What every command shares: error handling, common options, printing. No heavy imports here."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from click.exceptions import Abort, ClickException, Exit

from cryoforum_plugin.errors import CryoForumError

Command = TypeVar("Command", bound=Callable[..., Any])

INPUT_FILE = click.Path(path_type=Path)  # existence is checked by the readers, which say what to do
OUTPUT_PATH = click.Path(path_type=Path)

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=1,
    show_default=True,
    help="Seed of all random choices.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Where to compute."
)
data_root_option = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that relative image paths start from "
    "[default: the current folder for .star, the project folder for .cs and .csg].",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the network; auto takes bf16 where the hardware multiplies it.",
)
json_option = click.option(
    "--json", "json_file", type=OUTPUT_PATH, default=None, help="Also write the figures here."
)


def devices_options(command: Command) -> Command:
    """Add --devices and --num-nodes."""
    devices = click.option(
        "--devices",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Devices of each machine that share the work, a process each.",
    )
    num_nodes = click.option(
        "--num-nodes",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Machines that share the work.",
    )
    return devices(num_nodes(command))


def contrast_options(command: Command) -> Command:
    """Add --invert-contrast and --ignore-contrast, which set `contrast` (None when neither is given)."""
    invert = click.option(
        "--invert-contrast",
        "contrast",
        flag_value="invert",
        default=None,
        help="Protein is dark: invert images.",
    )
    ignore = click.option(
        "--ignore-contrast", "contrast", flag_value="ignore", help="Do not refuse images with dark protein."
    )
    return invert(ignore(command))


class _EchoHandler(logging.Handler):
    """Prints log messages on whatever stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"cryoforum: {record.levelname.lower()}: {record.getMessage()}", err=True)


def show_log() -> None:
    """Send the log's warnings to stderr, once."""
    logger = logging.getLogger("cryoforum")
    if not any(isinstance(handler, _EchoHandler) for handler in logger.handlers):
        logger.addHandler(_EchoHandler(logging.WARNING))


@contextmanager
def user_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one line on stderr and exit code 1 (130 on Ctrl-C); `debug` keeps the traceback."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("cryoforum: interrupted", err=True)
        sys.exit(130)
    except (ClickException, Exit, Abort, BrokenPipeError):  # click knows what to do
        raise
    except CryoForumError as error:
        if debug:
            raise
        click.echo(f"cryoforum: error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        click.echo(
            f"cryoforum: error: unexpected {type(error).__name__}: {text} (run again with --debug for the details)",
            err=True,
        )
        sys.exit(1)


class ErrorGroup(click.RichGroup):
    """A group whose commands end in one line when they fail; its option --debug keeps the traceback."""

    def invoke(self, ctx: click.Context) -> object:
        show_log()
        with user_errors(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


def write_json(path: Path | None, figures: dict[str, Any], overwrite: bool) -> None:
    """Write `figures` to `path` (if given) as JSON, whole or not at all."""
    from cryoforum_plugin.atomic import atomic_file

    if path is not None:
        with atomic_file(path, overwrite) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
