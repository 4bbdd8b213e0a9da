"""cryoforum: orientations with calibrated uncertainty from cryo-EM particle images."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cryoforum")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
