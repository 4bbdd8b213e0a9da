"""RELION: STAR files to particles and back, and the External job."""
