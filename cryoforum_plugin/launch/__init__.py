"""Several processes that do one thing together, a device each: started, watched, and ended together."""

from cryoforum_plugin.launch.place import Devices, Place

__all__ = ["Devices", "Place"]
