"""`cryoforum doctor`: what is installed, what it can run on, and whether the conventions hold."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import rich_click as click

from cryoforum_plugin.cli.common import json_option, overwrite_option, write_json

PACKAGES = ("cryoforum", "torch", "numpy", "scipy", "mrcfile", "starfile", "roma", "lightning-fabric")
OPTIONAL_PACKAGES = ("cryosparc-tools",)
RELION_PROGRAMS = (
    "relion_refine",
    "relion_refine_mpi",
    "relion_project",
    "relion_reconstruct",
    "relion_postprocess",
    "relion_star_handler",
    "relion_pipeliner",
)


@click.command(name="doctor")
@json_option
@overwrite_option
def command(json_file: Path | None, overwrite: bool) -> None:
    """Show versions, devices and host programs, and test the conventions; exit 1 if a test fails."""
    from cryoforum_plugin.atomic import check_output
    from cryoforum_plugin.errors import CryoForumError
    from cryoforum_plugin.selftest import run_checks

    if json_file is not None:
        check_output(json_file, overwrite)
    report: dict[str, Any] = {"versions": versions(), "devices": devices(), "programs": programs()}
    for title, entries in report.items():
        click.echo(f"{title}:")
        for name, value in entries.items():
            click.echo(f"  {name}: {'-' if value is None else value}")
    checks = run_checks()
    click.echo("conventions:")
    for check in checks:
        click.echo(f"  {'ok    ' if check.passed else 'FAILED'}  {check.name} ({check.detail})")
    report["conventions"] = [check._asdict() for check in checks]
    write_json(json_file, report, overwrite)
    failed = sum(not check.passed for check in checks)
    if failed:
        raise CryoForumError(
            f"{failed} of {len(checks)} convention checks failed: results would be wrong; "
            "compare the versions above with those in pyproject.toml"
        )
    click.echo(f"all {len(checks)} convention checks passed")


def versions() -> dict[str, str | None]:
    """Versions of Python, the system and the packages that matter; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for name in (*PACKAGES, *OPTIONAL_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def devices() -> dict[str, Any]:
    """CPU cores, bf16 instructions and CUDA devices."""
    import torch

    found: dict[str, Any] = {
        "cpu cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cpu bf16": _cpu_bf16_flags(),
        "cuda": torch.version.cuda,
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_GiB = properties.total_memory / 2**30
        found[f"cuda:{index}"] = f"{properties.name}, {memory_GiB:.0f} GiB"
    return found


def _cpu_bf16_flags() -> str | None:
    """CPU flags for bf16 arithmetic, or None without any (or where the system does not tell)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}
    return " ".join(sorted(flags & {"avx512_bf16", "amx_bf16", "amx_tile"})) or None


def programs() -> dict[str, str | None]:
    """Where RELION's programs, MPI and the NVIDIA tool are on PATH, and RELION's version."""
    found = {name: shutil.which(name) for name in (*RELION_PROGRAMS, "mpirun", "nvidia-smi")}
    found["RELION version"] = None
    if found["relion_refine"]:
        line = _first_line_with("version", [found["relion_refine"], "--version"])
        found["RELION version"] = line and line.split(":")[-1].strip()
    return found


def _first_line_with(word: str, command_line: list[str]) -> str | None:
    """First output line of a program that holds `word`, or None when it does not run."""
    try:
        done = subprocess.run(
            command_line, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"cryoforum: warning: {command_line[0]} does not run: {error}", file=sys.stderr)
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if word in line.lower()]
    return lines[0] if lines else None
