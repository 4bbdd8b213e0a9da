"""`cryoforum demo`: the whole chain on a small built-in map."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import rich_click as click

from cryoforum_plugin.cli.common import (
    OUTPUT_PATH,
    device_option,
    overwrite_option,
    quiet_option,
    seed_option,
)


@click.command(name="demo")
@click.option(
    "-o", "--output", type=OUTPUT_PATH, default="cryoforum-demo", show_default=True, help="Folder to write."
)
@click.option(
    "--count", type=click.IntRange(200), default=5000, show_default=True, help="Images to simulate."
)
@click.option("--epochs", type=click.IntRange(1), default=None, help="Passes over the training images.")
@seed_option
@device_option
@overwrite_option
@quiet_option
def command(
    output: Path, count: int, epochs: int | None, seed: int, device: str, overwrite: bool, quiet: bool
) -> None:
    """Simulate, train, predict, select, reconstruct and report on a built-in 70S ribosome (PDB 4V5A).

    Takes a few minutes on two CPU cores.
    """
    from cryoforum_plugin.atomic import check_directory
    from cryoforum_plugin.cli.main import main
    from cryoforum_plugin.demo.run import OUTPUTS, DemoSize, run_demo

    check_directory(output, OUTPUTS, overwrite)
    if output.exists():
        shutil.rmtree(output)
    computing = {"simulate", "train", "predict", "reconstruct"}

    def run(*arguments: object) -> None:
        name, *rest = [str(argument) for argument in arguments]
        if not quiet:
            click.echo(f"$ cryoforum {name} {' '.join(rest)}", err=True)
        extra = [
            *(["--device", device] if name in computing else []),
            *(["--quiet"] if quiet and name != "report" else []),
        ]
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.main([*rest, *extra], prog_name=f"cryoforum {name}", standalone_mode=False)

    start = time.monotonic()
    result = run_demo(output, DemoSize(count, epochs), seed, run)
    click.echo(
        f"""
finished in {time.monotonic() - start:.0f} s
error of the new particles       median {result.median_error_deg:.2f} deg; 90 % credible balls hold {100 * result.coverage_90:.0f} %
selected                         {result.kept} of {result.total} images, median error {result.median_error_selected_deg:.2f} deg
noise and wrong particles        {100 * result.junk_before:.0f} % of all images, {100 * result.junk_after:.1f} % of the selected
resolution (FSC 0.143)           {result.resolution_all_A:.1f} A from all images, {result.resolution_selected_A:.1f} A from the selected
picture                          {result.picture}
report                           {result.report}"""
    )
