"""The geometry of the scenes: flat faces, a pinhole camera and the rays between them.

Everything is in metres in a world whose z axis points up, except what the camera projects: that is in continuous
pixels, x to the right and y down. F faces, N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rounding errors are smaller than this share of a distance.
HIDING_MARGIN = 1e-4


@dataclass(frozen=True)
class Faces:
    """Flat faces: the points `origin + s * edge_s + t * edge_t` with s and t in [0, 1].

    Attributes:
        origins: `(F, 3)` corners where s and t are 0.
        edges_s: `(F, 3)` edges along which s runs from 0 to 1.
        edges_t: `(F, 3)` edges along which t runs from 0 to 1. The front of a face is where `edges_s x edges_t` points.
        tapers: `(F,)` how far the side at `t = 1` is shortened at each of its ends, as a share of its length.
        discs: `(F,)` bool, True for the ellipse inside the face in place of the whole face.
    """

    origins: np.ndarray
    edges_s: np.ndarray
    edges_t: np.ndarray
    tapers: np.ndarray
    discs: np.ndarray

    @classmethod
    def create(
        cls,
        origins: np.ndarray,
        edges_s: np.ndarray,
        edges_t: np.ndarray,
        tapers: np.ndarray | float = 0.0,
        discs: bool = False,
    ) -> Faces:
        """Broadcasts the arguments to one row per face.

        Args:
            origins: `(F, 3)`.
            edges_s: `(F, 3)`.
            edges_t: `(F, 3)`.
            tapers: `(F,)`, or one value for all faces.
            discs: Whether the faces are discs.

        Returns:
            The faces.
        """
        origins = np.atleast_2d(np.asarray(origins, dtype=np.float64))
        count = len(origins)
        return cls(
            origins,
            np.broadcast_to(np.asarray(edges_s, dtype=np.float64), (count, 3)),
            np.broadcast_to(np.asarray(edges_t, dtype=np.float64), (count, 3)),
            np.broadcast_to(np.asarray(tapers, dtype=np.float64), (count,)),
            np.full(count, discs),
        )

    @classmethod
    def join(cls, parts: list[Faces]) -> Faces:
        """All faces of the parts, in order.

        Args:
            parts: At least one group of faces.

        Returns:
            One group.
        """
        names = ("origins", "edges_s", "edges_t", "tapers", "discs")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.origins)

    def normals(self) -> np.ndarray:
        """Unit vectors `(F, 3)` that point away from the front of each face."""
        normals = np.cross(self.edges_s, self.edges_t)
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def inverse_rays(self, viewpoint: np.ndarray) -> np.ndarray:
        """Matrices that give the points where rays from a viewpoint meet the planes of the faces.

        For a ray along `d`, `matrix @ d` is `(s, t, 1) / distance`, with the distance in multiples of `d`'s length.

        Args:
            viewpoint: `(3,)` where the rays start.

        Returns:
            `(F, 3, 3)` matrices.
        """
        columns = np.stack([self.edges_s, self.edges_t, self.origins - viewpoint], axis=2)
        return np.linalg.inv(columns)

    def contain(self, p: np.ndarray, q: np.ndarray, r: np.ndarray | float = 1.0) -> np.ndarray:
        """Whether rays meet faces ahead of them; `p, q, r` are the `matrix @ d` of `inverse_rays`.

        Args:
            p: `(F, ...)`, s / distance.
            q: `(F, ...)`, t / distance.
            r: `(F, ...)`, 1 / distance; 1 if p and q are s and t.

        Returns:
            `(F, ...)` bool.
        """
        inside = (q >= 0) & (q <= r) & (r > 0)
        taper = self.tapers.astype(p.dtype).reshape(-1, *[1] * (p.ndim - 1)) * q
        inside &= p >= taper
        inside &= p <= r - taper
        if self.discs.any():
            r = np.broadcast_to(r, p.shape)[self.discs]
            inside[self.discs] &= (2 * p[self.discs] - r) ** 2 + (2 * q[self.discs] - r) ** 2 <= r**2
        return inside

    def __getitem__(self, chosen: slice | np.ndarray) -> Faces:
        return Faces(*(array[chosen] for array in (self.origins, self.edges_s, self.edges_t, self.tapers, self.discs)))

    def hide(self, points: np.ndarray, viewpoint: np.ndarray, margin: float = HIDING_MARGIN) -> np.ndarray:
        """Which points are hidden from a viewpoint by any of the faces.

        Args:
            points: `(N, 3)`. A point on a face is not hidden by that face.
            viewpoint: `(3,)`.
            margin: How much nearer than a point a face has to be to hide it, as a share of the point's distance.

        Returns:
            `(N,)` bool.
        """
        p, q, r = np.einsum("fij,nj->ifn", self.inverse_rays(viewpoint), points - viewpoint)
        return (self.contain(p, q, r) & (r > 1 + margin)).any(axis=0)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion.

    Attributes:
        position: `(3,)`.
        rotation: `(3, 3)` whose rows are the camera's right, down and forward axes.
        focal_length: In pixels.
        size: Height and width of the image in pixels; the optical axis meets its centre.
    """

    position: np.ndarray
    rotation: np.ndarray
    focal_length: float
    size: tuple[int, int]

    @classmethod
    def looking_at(
        cls, target: np.ndarray, position: np.ndarray, roll: float, focal_length: float, size: tuple[int, int]
    ) -> Camera:
        """A camera that has `target` in the middle of its image.

        Args:
            target: `(3,)`.
            position: `(3,)`, not straight above the target.
            roll: Rotation about the optical axis, in radians.
            focal_length: In pixels.
            size: Height and width of the image in pixels.

        Returns:
            The camera.
        """
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(roll), np.sin(roll)
        rotation = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
        return cls(position, rotation, focal_length, size)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Projects points into the image.

        Args:
            points: `(N, 3)`.

        Returns:
            xy `(N, 2)` in continuous pixels, NaN behind the camera, and depth `(N,)` in metres along the optical axis.
        """
        right, down, depth = ((points - self.position) @ self.rotation.T).T
        scale = self.focal_length / np.where(depth > 0, depth, np.nan)
        height, width = self.size
        return np.stack([width / 2 + scale * right, height / 2 + scale * down], axis=1), depth

    def rays(self, faces: Faces) -> np.ndarray:
        """`faces.inverse_rays` for this camera, with pixels instead of directions.

        Args:
            faces: The faces.

        Returns:
            `(F, 3, 3)` matrices: `matrix @ (x, y, 1)` is `(s, t, 1) / depth` on the face that the pixel shows.
        """
        height, width = self.size
        to_camera = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, self.focal_length]]) / self.focal_length
        return faces.inverse_rays(self.position) @ self.rotation.T @ to_camera
