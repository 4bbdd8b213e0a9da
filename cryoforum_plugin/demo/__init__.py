"""The demonstration: the whole chain on a small built-in map.

`ribosome70S_4v5a_64px_6A.mrc` is the 70S ribosome of PDB entry 4V5A (atomic coordinates, CC0), blurred and
Fourier-cropped to 64 voxels of 6 Å.
"""
