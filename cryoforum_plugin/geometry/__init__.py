"""Rotations, distances, point groups and their asymmetric units."""

from cryoforum_plugin.geometry.asymmetric_unit import (
    in_asymmetric_unit,
    operator_to_unit,
    reduce_to_asymmetric_unit,
)
from cryoforum_plugin.geometry.rotations import (
    angular_distance,
    angular_distance_to_group,
    in_plane_quaternion,
    left_multiplication_matrix,
    quaternion_to_relion_euler,
    quaternion_to_rotation_vector,
    random_quaternions,
    relion_euler_to_quaternion,
    right_multiplication_matrix,
    rotation_vector_to_quaternion,
    super_fibonacci_quaternions,
)
from cryoforum_plugin.geometry.sphere import cell_centres, cell_of, fibonacci_half_sphere
from cryoforum_plugin.geometry.symmetry import COMMON_GROUPS, symmetry_group

__all__ = [
    "COMMON_GROUPS",
    "angular_distance",
    "angular_distance_to_group",
    "cell_centres",
    "cell_of",
    "fibonacci_half_sphere",
    "in_asymmetric_unit",
    "in_plane_quaternion",
    "left_multiplication_matrix",
    "operator_to_unit",
    "quaternion_to_relion_euler",
    "quaternion_to_rotation_vector",
    "random_quaternions",
    "reduce_to_asymmetric_unit",
    "relion_euler_to_quaternion",
    "right_multiplication_matrix",
    "rotation_vector_to_quaternion",
    "super_fibonacci_quaternions",
    "symmetry_group",
]
