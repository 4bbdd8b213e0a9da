"""Poses refined against a reference map: from within about ten degrees to the limit that the noise sets."""
