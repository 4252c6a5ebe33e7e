"""A cardboard box: where its walls, flaps and keypoints are, in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keypoint_detection.data.boxes.geometry import Faces

CORNERS = "corner_keypoints"
FLAP_CORNERS = "flap_corner_keypoints"


@dataclass(frozen=True)
class Box:
    """A cardboard box that stands on the ground, open or closed, with a flap at each upper edge.

    Attributes:
        size: `(3,)` length, width and height.
        position: `(2,)` centre on the ground.
        yaw: Rotation about the vertical, in radians.
        flap_lengths: `(4,)`.
        flap_angles: `(4,)` in radians: 0 covers the opening, pi / 2 stands upright, pi points outwards.
        flap_taper: How far the outer edge of a flap is shortened at each end, as a share of its length.
    """

    size: np.ndarray
    position: np.ndarray
    yaw: float
    flap_lengths: np.ndarray
    flap_angles: np.ndarray
    flap_taper: float

    def corners(self) -> np.ndarray:
        """The corners of the floor, `(4, 3)`, anticlockwise as seen from above."""
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        flat = (signs * self.size[:2] / 2) @ np.array([[cos, sin], [-sin, cos]]) + self.position
        return np.concatenate([flat, np.zeros((4, 1))], axis=1)

    def opening(self) -> np.ndarray:
        """The corners of the opening, `(4, 3)`, above those of the floor."""
        return self.corners() + np.array([0, 0, self.size[2]])

    def _flaps(self) -> tuple[np.ndarray, np.ndarray]:
        """The upper edges of the box and the edges that lead from them to the ends of the flaps, each `(4, 3)`."""
        corners = self.corners()
        edges = np.roll(corners, -1, axis=0) - corners
        inwards = np.cross((0.0, 0.0, 1.0), edges / np.linalg.norm(edges, axis=1, keepdims=True))
        angles = self.flap_angles[:, None]
        return edges, self.flap_lengths[:, None] * (np.cos(angles) * inwards + np.sin(angles) * np.array([0, 0, 1]))

    def edge_on(self, viewpoint: np.ndarray) -> bool:
        """Whether some flap is seen so nearly edge-on that it almost disappears (it has no thickness).

        Args:
            viewpoint: `(3,)`.

        Returns:
            True if the angle between the line of sight and the flap is less than about 4 degrees.
        """
        flaps = self.faces()[4:8]
        sight = flaps.origins - viewpoint
        slopes = np.einsum("fi,fi->f", flaps.normals(), sight / np.linalg.norm(sight, axis=1, keepdims=True))
        return bool((np.abs(slopes) < 0.07).any())

    def faces(self) -> Faces:
        """Four walls and four flaps, with their fronts outside, and the floor, with its front inside."""
        corners, opening = self.corners(), self.opening()
        edges, flaps = self._flaps()
        above_ground = corners[0] + np.array([0, 0, 0.01 * self.size[2]])
        return Faces.join(
            [
                Faces.create(corners, edges, opening - corners),
                Faces.create(opening, edges, flaps, self.flap_taper),
                Faces.create(above_ground, corners[1] - corners[0], corners[3] - corners[0]),
            ]
        )

    def keypoints(self) -> dict[str, np.ndarray]:
        """The keypoints, hidden ones included.

        Returns:
            For each channel `(K, 3)` points: the 4 corners of the opening, and the 2 outer corners of each flap.
        """
        opening = self.opening()
        edges, flaps = self._flaps()
        first = opening + flaps + self.flap_taper * edges
        second = opening + flaps + (1 - self.flap_taper) * edges
        return {CORNERS: opening, FLAP_CORNERS: np.stack([first, second], axis=1).reshape(-1, 3)}

    def inwards(self) -> dict[str, np.ndarray]:
        """The directions in which the faces that meet at a keypoint extend from it.

        Returns:
            For each channel `(K, D, 3)` unit vectors from the keypoint into the middle of each of its D faces: two
            walls and two flaps at a corner of the opening, one flap at its outer corner.
        """
        edges, flaps = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in self._flaps())
        before, flaps_before = np.roll(edges, 1, axis=0), np.roll(flaps, 1, axis=0)
        down = np.array([0.0, 0.0, -1.0])
        corners = np.stack([edges + down, down - before, edges + flaps, flaps_before - before], axis=1)
        outer = np.stack([edges - flaps, -edges - flaps], axis=1).reshape(-1, 1, 3)
        return {CORNERS: corners / np.sqrt(2), FLAP_CORNERS: outer / np.sqrt(2)}
