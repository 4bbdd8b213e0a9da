"""The one exception family: each message says what was found, where, and what to do."""


class CryoForumError(Exception):
    """Base of every error a user can cause; the command line prints it as one line and exits with 1."""


class ParticleFileError(CryoForumError):
    """A particle table (STAR or .cs) cannot be used as it is."""


class ImageStackError(CryoForumError):
    """An image stack or map is missing, damaged, or holds unusable pixels."""


class UnusableImagesError(ImageStackError):
    """Every image is constant or holds pixels that are not finite."""


class ModelError(CryoForumError):
    """A model directory is missing, damaged, newer than this program, or made for other data."""


class HostError(CryoForumError):
    """RELION or cryoSPARC did not behave as needed."""


class OutputError(CryoForumError):
    """An output exists already or cannot be written."""


class SettingsError(CryoForumError):
    """A setting is unknown or out of range."""


class DeviceError(CryoForumError):
    """A processor or GPU that is not there, too small, or lost on the way."""


class ProcessError(CryoForumError):
    """One of several processes that work together ended before its work was done."""
