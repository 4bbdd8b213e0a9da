"""Settings: presets, files, --set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.settings import PRESETS, Settings, flatten, preset, read_config, with_values


def test_every_setting_and_its_default_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for key, value in flatten(Settings()).items():
        if key != "preset":
            assert f"| `{key}` | `{value}` |" in page, key
    for name, values in PRESETS.items():
        assert f"--preset {name}" in page
        for key, value in values.items():
            assert f"\n{key}={value}\n" in page, (name, key)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_valid_and_round_trip(name: str, tmp_path: Path) -> None:
    settings = preset(name)
    assert with_values(Settings(), flatten(settings)) == settings
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": flatten(settings)}))
    assert with_values(Settings(), read_config(file)) == settings


def test_values_are_converted_from_text() -> None:
    settings = with_values(
        Settings(), {"training.epochs": "3", "training.learning_rate": "1e-4", "symmetry": "D2"}
    )
    assert (settings.training.epochs, settings.training.learning_rate, settings.symmetry) == (3, 1e-4, "D2")
    assert with_values(settings, {"training.epochs": "auto"}).training.epochs is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epoch", "3", "unknown setting 'training.epoch'"),
        ("training", "3", "unknown setting 'training'"),
        ("nothing.epochs", "3", "unknown setting"),
        ("training.epochs", "many", "not a valid int"),
        ("training.epochs", "2.5", "not a valid int"),
        ("images.size_px", "63", "must be even"),
        ("images.ctf", "phase", "images.ctf must be"),
        ("training.validation_fraction", "1", "between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        with_values(Settings(), {key: value})


def test_config_files(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('symmetry = "C4"\n[training]\nepochs = 5\n')
    assert read_config(file) == {"symmetry": "C4", "training.epochs": 5}
    file.write_text("epochs = = 5")
    with pytest.raises(SettingsError, match="not valid TOML"):
        read_config(file)
    with pytest.raises(SettingsError, match="cannot read"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="unknown preset"):
        preset("slow")
