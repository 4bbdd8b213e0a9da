"""Every setting of a training run, with its default: frozen dataclasses, one a section."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.setting_rules import check


@dataclass(frozen=True)
class ImageSettings:
    """How particles become working images.

    size_px : side of the working box. diameter_A : particle diameter, None = measured from a quick
    reconstruction. margin : side of the window in diameters, None = the whole image. ctf : flip phases,
    multiply by the CTF, keep it in the images, or none (there is none in them). contrast : check (refuse
    dark protein), invert, or ignore. preprocessing : of the working image; background = rim to mean 0 and
    s.d. 1, then circular mask; image = circular mask, then the whole to mean 0 and s.d. 1; none.
    """

    size_px: int = 64
    diameter_A: float | None = None
    margin: float | None = 1.2
    ctf: str = "flip"
    contrast: str = "check"
    preprocessing: str = "background"


@dataclass(frozen=True)
class NetworkSettings:
    """The network.

    encoder : polar, or vgg (the paper's). representation : what the head's numbers mean: symmetric (A
    itself), qcqp (A = L L'), 6d (Gram-Schmidt), quaternion; the last two with one width for every view of every image.
    channels : of the first stage. polar only: features per sector, hidden units of the head. vgg only:
    blur (none, gaussian, low_pass), pooling (max, max_average, generalised_mean), final_convolutions
    (0 to 2 of the last two), dropout. polar only: modes, hypotheses of the orientation.
    """

    encoder: str = "polar"
    representation: str = "symmetric"
    channels: int = 32
    features: int = 64
    hidden: int = 256
    blur: str = "low_pass"
    pooling: str = "generalised_mean"
    final_convolutions: int = 2
    dropout: float = 0.3
    modes: int = 1


@dataclass(frozen=True)
class LossSettings:
    """What is minimised: a weighted sum of terms of the orientation, and the shift's likelihood.

    likelihood : Bingham negative log-likelihood (nat). geodesic : angle (rad) between label and mode.
    chordal : squared distance of the quaternions. distance : error of the predicted pairwise distances
    (rad); needs training.branches siamese or all_pairs. curriculum : the paper's weights, from distance to
    the other terms. shift : weight of the shift's likelihood. symmetry : average the likelihood over
    equivalent labels, or asymmetric_unit (the paper: labels reduced to it). outliers : part of the particles'
    labels that the likelihood takes for wrong at first; learned from there, 0 = none ever is.
    """

    likelihood: float = 1.0
    geodesic: float = 0.0
    chordal: float = 0.0
    distance: float = 0.0
    curriculum: bool = False
    shift: float = 0.1
    symmetry: str = "average"
    outliers: float = 0.02


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop.

    epochs : None = as many as `samples` images need. batch_size : images a step. simulated : fraction of
    each batch that shows the reference, rebuilt from the training particles, in new poses under the
    particles' own CTFs and noise. augmentation : full (rotation, mirror, shift, noise), noise (images and
    shifts as they are, noise grows), or none. max_shift : largest augmentation shift along x and y, as a fraction of the
    window; raised to what 99 % of the particles have. noise_range : factor by which noise grows or falls.
    reference_particles : at most this many build the reference. check_symmetry : refuse a symmetry that the
    reference's half maps contradict; False warns. optimiser : adamw, or adam with weight decay
    as an L2 term on kernels. cycle_momentum : momentum falls while the learning rate rises.
    branches : single; siamese (batches of pairs); all_pairs (every pair of a batch from one pass). For
    siamese, batch_size counts pairs; pairs : random or stratified (equal numbers in bins of distance);
    pair_fraction of all ordered pairs make an epoch, at least 1,024, at most 250,000 or as many as particles. freeze : none, early (first half of the encoder) or encoder keep the weights they
    start with (see --init-from), for freeze_epochs (None = all). half_sets : a model for each half set; None =
    where each has enough particles. folds : models trained on all but a fold each; 1 = one model of all.
    balance_views : particles are drawn with the density of their viewing direction to the minus this power.
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
    augmentation: str = "full"
    optimiser: str = "adamw"
    cycle_momentum: bool = False
    branches: str = "single"
    pairs: str = "random"
    pair_fraction: float = 0.01
    freeze: str = "none"
    freeze_epochs: int | None = None
    half_sets: bool | None = None
    folds: int = 1
    validation_fraction: float = 0.1
    reference_particles: int = 20_000
    balance_views: float = 0.0
    check_symmetry: bool = True
    seed: int = 1


@dataclass(frozen=True)
class MapAloneSettings:
    """Images made from a map where there are no refined particles.

    images : how many are made. centring : s.d. of the particle's place along x and y, fraction of the box: an
    assumption, as nobody measured it of picks.
    contrast_spread : s.d. of the logarithm of the contrast of validation images.
    """

    images: int = 4000
    centring: float = 0.015
    contrast_spread: float = 0.2


@dataclass(frozen=True)
class Settings:
    """All settings of a training run; written to MODEL_DIR/config.json."""

    preset: str = "default"
    symmetry: str = "C1"
    images: ImageSettings = field(default_factory=ImageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    map_alone: MapAloneSettings = field(default_factory=MapAloneSettings)


DEFAULT_VIEWS = 2  # test-time views of a prediction: 4 and 8 gain 1 % (docs/benchmarks.md)

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"network.channels": 24, "training.samples": 64_000},
    "paper": {
        "images.size_px": 128,
        "images.margin": None,
        "images.ctf": "keep",
        "images.preprocessing": "image",
        "network.encoder": "vgg",
        "network.representation": "qcqp",
        "loss.likelihood": 0.0,
        "loss.geodesic": 1.0,
        "loss.distance": 1.0,
        "loss.curriculum": True,
        "loss.symmetry": "asymmetric_unit",
        "training.epochs": 50,
        "training.batch_size": 256,
        "training.learning_rate": 1e-3,
        "training.weight_decay": 2e-3,  # the gradient of 0.001 * sum of squares
        "training.warm_up": 0.3,
        "training.simulated": 0.0,
        "training.augmentation": "noise",
        "training.optimiser": "adam",
        "training.cycle_momentum": True,
        "training.validation_fraction": 0.25,  # 17 to 50
        "training.branches": "siamese",
    },
}


def _convert(text: Any, hint: Any, key: str) -> Any:
    """Turn command-line text (or a JSON/TOML value) into the type a setting is declared with."""
    options = [option for option in getattr(hint, "__args__", (hint,)) if option is not type(None)]
    optional = type(None) in getattr(hint, "__args__", ())
    if optional and (text is None or str(text).lower() in ("none", "auto")):
        return None
    kind = options[0]
    if kind is bool:
        if str(text).lower() not in ("true", "false"):
            raise SettingsError(f"setting {key}: {text!r} is not true or false")
        return str(text).lower() == "true"
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


def flatten(settings: Settings) -> dict[str, Any]:
    """Settings as {"section.key": value}."""
    return _dotted(dataclasses.asdict(settings))


def _dotted(sections: dict[str, Any]) -> dict[str, Any]:
    """{"section": {"key": value}} as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat.update(
            {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat


def preset(name: str) -> Settings:
    """Settings of a preset. Raises SettingsError for an unknown name."""
    if name not in PRESETS:
        raise SettingsError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return with_values(Settings(preset=name), PRESETS[name])


def assemble(
    preset_name: str,
    *,
    network: NetworkSettings | None = None,
    config: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of a preset, then those of another model's network, a config, options, and assignments.

    All are {"section.key": value}; options may be None where not given. A config's preset counts where
    `preset_name` is the default. Raises SettingsError.
    """
    config = dict(config or {})
    named = str(config.pop("preset", preset_name))
    settings = preset(named if preset_name == "default" else preset_name)
    if network is not None:
        settings = replace(settings, network=network)
    settings = with_values(settings, config)
    settings = with_values(settings, {k: v for k, v in (options or {}).items() if v is not None})
    return with_values(settings, dict(assignments or {}))


OPTIONS = {  # options that every front end has, and the settings they stand for
    "symmetry": "symmetry",
    "epochs": "training.epochs",
    "seed": "training.seed",
    "contrast": "images.contrast",
}


def implied_by_source(simulated_only: bool, alone: bool) -> dict[str, Any]:
    """{"section.key": value} of a training on simulated images only, perhaps with a map and no refined particle.

    Alone, the images that lend their noise have no spread of contrast of their own: more is drawn in training.
    """
    values = {"training.simulated": 1.0} if simulated_only or alone else {}
    return values | ({"training.noise_range": 1.4} if alone else {})


def option_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} of the options in OPTIONS, as `assemble` takes them."""
    return {key: options[name] for name, key in OPTIONS.items()}


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """{"section.key": value} from "section.key=value". Raises SettingsError for another form."""
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise SettingsError(f"setting {text!r} is not of the form SECTION.KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


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
    return _dotted(data)
