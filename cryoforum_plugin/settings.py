"""Every setting of a training run, with its default: frozen dataclasses, one a section."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from cryoforum_plugin.errors import SettingsError


@dataclass(frozen=True)
class ImageSettings:
    """How particles become working images.

    size_px : side of the working box. diameter_A : particle diameter, None = measured from a quick
    reconstruction. margin : side of the window in diameters. ctf : flip phases, multiply by the CTF, or
    leave it. contrast : check (refuse dark protein), invert, or ignore.
    """

    size_px: int = 64
    diameter_A: float | None = None
    margin: float = 1.2
    ctf: str = "flip"
    contrast: str = "check"


@dataclass(frozen=True)
class NetworkSettings:
    """Width of the network: channels of the first stage, features per sector, hidden units of the head."""

    channels: int = 32
    features: int = 64
    hidden: int = 256


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop.

    epochs : None = as many as `samples` images need. batch_size : images a step. simulated : fraction of
    each batch that shows the reference, rebuilt from the training particles, in new poses under the
    particles' own CTFs and noise. max_shift : largest augmentation shift along x and y, as a fraction of the
    window; raised to what 99 % of the particles have. noise_range : factor by which noise grows or falls.
    reference_particles : at most this many build the reference.
    """

    epochs: int | None = None
    samples: int = 256_000
    batch_size: int = 64
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    warm_up: float = 0.15
    gradient_clip: float = 10.0
    simulated: float = 0.75
    max_shift: float = 0.03
    noise_range: float = 1.25
    shift_weight: float = 0.1
    validation_fraction: float = 0.1
    reference_particles: int = 20_000
    seed: int = 1


@dataclass(frozen=True)
class Settings:
    """All settings of a training run; written to MODEL_DIR/config.json."""

    preset: str = "default"
    symmetry: str = "C1"
    images: ImageSettings = field(default_factory=ImageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


DEFAULT_VIEWS = 2  # test-time views of a prediction: 4 and 8 gain 1 % (docs/benchmarks.md)

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"network.channels": 24, "training.samples": 64_000},
}


def _convert(text: Any, hint: Any, key: str) -> Any:
    """Turn command-line text (or a JSON/TOML value) into the type a setting is declared with."""
    options = [option for option in getattr(hint, "__args__", (hint,)) if option is not type(None)]
    optional = type(None) in getattr(hint, "__args__", ())
    if optional and (text is None or str(text).lower() in ("none", "auto")):
        return None
    kind = options[0]
    try:
        if kind is int and float(text) != int(float(text)):
            raise ValueError
        return int(float(text)) if kind is int else kind(text)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"setting {key}: {text!r} is not a valid {kind.__name__}") from None


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return settings with `values`, keyed "section.key" or "key", replaced and checked.

    Raises SettingsError for an unknown key or a value of the wrong type or range.
    """
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        target = getattr(settings, section, None) if section else settings
        names = [f.name for f in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
        if name not in names or dataclasses.is_dataclass(getattr(target, name)):
            raise SettingsError(f"unknown setting {key!r}; known: {', '.join(flatten(settings))}")
        changed: Any = replace(target, **{name: _convert(value, get_type_hints(type(target))[name], key)})  # type: ignore[type-var]
        if section:
            sections: dict[str, Any] = {section: changed}
            changed = replace(settings, **sections)
        settings = changed
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raise SettingsError for the first setting that is out of range."""
    images, training = settings.images, settings.training
    rules = [
        (images.size_px % 2 == 0 and 16 <= images.size_px <= 512, "images.size_px must be even, 16 to 512"),
        (images.ctf in ("flip", "multiply", "none"), "images.ctf must be flip, multiply or none"),
        (images.contrast in ("check", "invert", "ignore"), "images.contrast must be check, invert or ignore"),
        (images.diameter_A is None or images.diameter_A > 0, "images.diameter_A must be positive"),
        (1 <= images.margin <= 4, "images.margin must be 1 to 4"),
        (0 <= training.simulated <= 1, "training.simulated must be 0 to 1"),
        (0 < training.validation_fraction < 1, "training.validation_fraction must be between 0 and 1"),
        (training.epochs is None or training.epochs >= 1, "training.epochs must be at least 1"),
        (training.batch_size >= 2, "training.batch_size must be at least 2"),
        (training.learning_rate > 0, "training.learning_rate must be positive"),
        (training.noise_range >= 1, "training.noise_range must be at least 1"),
        (0 < training.max_shift <= 0.25, "training.max_shift must be above 0, at most 0.25"),
        (0 <= training.seed < 2**31, "training.seed must be 0 to 2147483647"),
        (training.samples >= 1, "training.samples must be at least 1"),
        (0 < training.warm_up < 1, "training.warm_up must be between 0 and 1"),
        (training.weight_decay >= 0, "training.weight_decay must not be negative"),
        (training.gradient_clip > 0, "training.gradient_clip must be positive"),
        (training.shift_weight >= 0, "training.shift_weight must not be negative"),
        (training.reference_particles >= 10, "training.reference_particles must be at least 10"),
        (settings.network.channels >= 1, "network.channels must be at least 1"),
        (settings.network.features >= 1, "network.features must be at least 1"),
        (settings.network.hidden >= 1, "network.hidden must be at least 1"),
    ]
    for holds, message in rules:
        if not holds:
            raise SettingsError(message)


def flatten(settings: Settings) -> dict[str, Any]:
    """Settings as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(settings).items():
        flat.update(
            {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def preset(name: str) -> Settings:
    """Settings of a preset. Raises SettingsError for an unknown name."""
    if name not in PRESETS:
        raise SettingsError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return with_values(Settings(preset=name), PRESETS[name])


def read_config(path: Path) -> dict[str, Any]:
    """Read {"section.key": value} from a TOML or JSON file (a model's config.json works too).

    Raises SettingsError for an unreadable file.
    """
    try:
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(
            f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"
        ) from error
    data = data.get("settings", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise SettingsError(f"{path} must hold settings by name, not {type(data).__name__}")
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat.update(
            {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat
