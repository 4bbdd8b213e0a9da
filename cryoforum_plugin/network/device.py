"""Which device computes, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cryoforum_plugin.errors import SettingsError

Precision = Literal["32-true", "bf16-mixed"]


def choose_device(name: str) -> torch.device:
    """Device for "auto", "cpu", "cuda" or "cuda:N". Raises SettingsError where it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    # torch keeps the index in eight bits: cuda:999 becomes cuda:-25
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        raise SettingsError(
            f"device {name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 matrix instructions (Linux; elsewhere False)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_precision(name: str, device: torch.device) -> Precision:
    """Precision for "auto", "32" or "bf16": auto takes bf16 where the hardware multiplies it."""
    if name == "auto":
        has_bf16 = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else cpu_multiplies_bf16()
        )
        return "bf16-mixed" if has_bf16 else "32-true"
    if name not in ("32", "bf16"):
        raise SettingsError(f"unknown precision {name!r}; use auto, 32 or bf16")
    return "bf16-mixed" if name == "bf16" else "32-true"


def at_least_float32(x: Tensor) -> Tensor:
    """Tensor in float32, or in the wider type it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
