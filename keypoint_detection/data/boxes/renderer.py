"""Renders a scene: which face each pixel shows, how much light falls on it, and what the camera makes of that.

Light is computed once per face on a coarse grid (a light map), by checking for every light whether another face is in
between. This gives soft shadows, and corners that get darker the less sky they see. F faces, H W image, L lights, N
points.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from keypoint_detection import heatmaps
from keypoint_detection.data.boxes.textures import fractal_noise, sample

if TYPE_CHECKING:
    from keypoint_detection.data.boxes.scene import Scene

# A face closer to another one than this, in metres, casts no shadow on it.
SHADOW_MARGIN = 3e-3

# Matrix products this small stay in one thread. On a busy machine, threads that wait for one another take ten times as
# long.
POINTS_AT_ONCE = 700


class VisibleFaces(NamedTuple):
    """What each pixel shows.

    Attributes:
        faces: `(H, W)` index of the face, -1 for none.
        s: `(H, W)` float32 coordinate on the face.
        t: `(H, W)` float32 coordinate on the face.
        depth: `(H, W)` float32 metres along the optical axis, infinite where there is no face.
    """

    faces: np.ndarray
    s: np.ndarray
    t: np.ndarray
    depth: np.ndarray


def find_visible(scene: Scene, supersampling: int = 1) -> VisibleFaces:
    """Casts a ray through the centre of every pixel and keeps the nearest face (a depth buffer).

    Args:
        scene: The scene.
        supersampling: Rays per pixel and direction.

    Returns:
        What the pixels show, in an image that is `supersampling` times as large.
    """
    height, width = (supersampling * n for n in scene.camera.size)
    xs = heatmaps.cell_centres(width, 1).numpy() / np.float32(supersampling)
    ys = heatmaps.cell_centres(height, 1).numpy() / np.float32(supersampling)
    index = np.full((height, width), -1, dtype=np.int32)
    p, q, nearness = (np.zeros((height, width), dtype=np.float32) for _ in range(3))
    matrices = scene.camera.rays(scene.faces).astype(np.float32)
    for face, matrix in enumerate(matrices):
        rows, columns = _extent(scene, face, supersampling)
        x, y = xs[columns][None, :], ys[rows][:, None]
        face_p, face_q, face_r = (row[0] * x + (row[1] * y + row[2]) for row in matrix)
        nearest = scene.faces[face : face + 1].contain(face_p[None], face_q[None], face_r[None])[0]
        nearest &= face_r > nearness[rows, columns]
        for buffer, values in ((index, np.int32(face)), (p, face_p), (q, face_q), (nearness, face_r)):
            np.copyto(buffer[rows, columns], values, where=nearest)
    shown = np.where(index >= 0, nearness, np.float32(np.inf))
    with np.errstate(divide="ignore"):
        return VisibleFaces(index, p / shown, q / shown, np.where(index >= 0, 1 / nearness, np.inf))


def _extent(scene: Scene, face: int, supersampling: int) -> tuple[slice, slice]:
    """Rows and columns of the image that a face may cover."""
    faces, (height, width) = scene.faces, scene.camera.size
    s, t = np.array([[0, 1, 0, 1], [0, 0, 1, 1]])[..., None]
    corners, depth = scene.camera.project(faces.origins[face] + s * faces.edges_s[face] + t * faces.edges_t[face])
    if (depth <= 0).any():
        return slice(None), slice(None)
    low = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int) * supersampling
    high = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int) * supersampling
    return slice(low[1], high[1]), slice(low[0], high[0])


def _visible_light(scene: Scene, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Which lights `(L, 3)` reach which points `(N, 3)`, as bool `(L, N)`: those with no face in between."""
    casting = scene.faces[scene.casts]
    lit = np.empty((len(directions), len(points)), dtype=bool)
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1).T.astype(np.float32)
    for light, direction in enumerate(directions):
        towards = np.broadcast_to(-direction, casting.origins.shape)
        inverse = np.linalg.inv(np.stack([casting.edges_s, casting.edges_t, towards], axis=2))
        offset = -np.einsum("fij,fj->fi", inverse, casting.origins)
        matrix = np.concatenate([inverse, offset[..., None]], axis=2).astype(np.float32).transpose(1, 0, 2)
        for start in range(0, len(points), POINTS_AT_ONCE):
            part = slice(start, start + POINTS_AT_ONCE)
            s, t, distance = matrix @ homogeneous[:, part]
            hidden = casting.contain(s, t) & (distance > SHADOW_MARGIN)
            lit[light, part] = ~hidden.any(axis=0)
    return lit


def light_maps(scene: Scene) -> list[tuple[np.ndarray, np.ndarray]]:
    """How much light falls on the front and on the back of each face.

    Args:
        scene: The scene.

    Returns:
        For each face two arrays `(n, n, 3)` of linear light; rows run along t and columns along s.
    """
    faces, grids = scene.faces, []
    for face, resolution in enumerate(scene.light_resolutions):
        places = heatmaps.cell_centres(int(resolution), 1).numpy().astype(np.float64) / resolution
        along_s = places[None, :, None] * faces.edges_s[face]
        along_t = places[:, None, None] * faces.edges_t[face]
        grids.append((faces.origins[face] + along_s + along_t).reshape(-1, 3))
    visible = _visible_light(scene, np.concatenate(grids), scene.lights.directions)
    visible |= np.repeat(scene.light_resolutions == 1, [len(grid) for grid in grids])
    slopes = scene.lights.directions @ faces.normals().T
    maps, start = [], 0
    for face, grid in enumerate(grids):
        lit = visible[:, start : start + len(grid)].astype(np.float32)
        start += len(grid)
        shape = (int(scene.light_resolutions[face]),) * 2 + (3,)
        sides = []
        for sign in (1, -1):
            weights = np.clip(sign * slopes[:, face], 0, None)[:, None] * scene.lights.colours
            sides.append((lit.T @ weights + scene.lights.ambient).reshape(shape).astype(np.float32))
        maps.append((sides[0], sides[1]))
    return maps


def render(scene: Scene, supersampling: int, rng: np.random.Generator) -> np.ndarray:
    """Renders a scene.

    Args:
        scene: The scene.
        supersampling: Rays per pixel and direction; their mean is the pixel.
        rng: The source of the camera's random settings and noise.

    Returns:
        `(H, W, 3)` uint8 sRGB.
    """
    visible = find_visible(scene, supersampling)
    maps = light_maps(scene)
    facing = np.einsum("fi,fi->f", scene.faces.normals(), scene.camera.position - scene.faces.origins) > 0
    flat_s, flat_t, flat_faces = visible.s.ravel(), visible.t.ravel(), visible.faces.ravel()
    image = np.broadcast_to(scene.backdrop, (len(flat_faces), 3)).astype(np.float32)
    order = np.argsort(flat_faces, kind="stable")
    starts = np.searchsorted(flat_faces[order], np.arange(len(scene.faces) + 1))
    for face, (first, last) in enumerate(pairwise(starts)):
        if first == last:
            continue
        pixels = order[first:last]
        s, t, material = flat_s[pixels], flat_t[pixels], scene.materials[face]
        texture, light = (material.front, maps[face][0]) if facing[face] else (material.back, maps[face][1])
        (scale_s, scale_t), (offset_s, offset_t) = material.scale, material.offset
        colour = sample(texture, scale_s * s + offset_s, scale_t * t + offset_t, wrap=material.tiled)
        image[pixels] = colour * sample(light, s, t)
    height, width = scene.camera.size
    image = image.reshape(height, supersampling, width, supersampling, 3).mean(axis=(1, 3))
    return develop(image, rng)


def develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of the light: exposure, white balance, vignette, blur, noise and contrast.

    Args:
        image: `(H, W, 3)` linear light.
        rng: The source of the random settings and the noise.

    Returns:
        `(H, W, 3)` uint8 sRGB.
    """
    height, width, _ = image.shape
    x, y = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    image = image * np.exp(rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    image *= (1 - rng.uniform(0, 0.2) * (x**2 + y**2))[..., None]
    exposure = np.exp(rng.normal(0, 0.25)) * 0.42 / (np.quantile(image.mean(axis=2), 0.6) + 0.05)
    image *= exposure * np.exp(rng.normal(0, 0.07, 3))
    image = image / (1 + image * 0.35)
    blur = rng.uniform(0, 0.9) * min(height, width) / 256
    image = _blur(image, blur)
    image += rng.uniform(0.002, 0.02) * np.sqrt(np.clip(image, 0.02, None)) * rng.standard_normal(image.shape)
    if rng.random() < 0.3:
        image *= 1 + 0.03 * fractal_noise(rng, (height, width), 1.5)[..., None]
    image = np.clip(image, 0, 1) ** (1 / rng.uniform(2.0, 2.5))
    return np.rint(255 * image).astype(np.uint8)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation in pixels."""
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, padding, mode="edge")
        length = image.shape[axis]
        parts = (w * np.take(padded, np.arange(i, i + length), axis=axis) for i, w in enumerate(weights))
        image = sum(parts, np.zeros_like(image))
    return image
