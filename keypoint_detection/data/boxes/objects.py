"""The things in a scene: boxes, the floor and walls, clutter on the floor, and things in front of the camera.

Each function appends a part (faces with their materials) to the parts of a scene. F faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keypoint_detection.data.boxes.box import Box
from keypoint_detection.data.boxes.geometry import Faces
from keypoint_detection.data.boxes.textures import cardboard, cardboard_colour, random_colour, surface

# Half the side, in metres, of the part of the floor on which shadows are drawn, and of the whole floor.
FLOOR_SHADOWS = 1.6
FLOOR = 30.0


@dataclass(frozen=True)
class Material:
    """What a face looks like.

    Attributes:
        front: Texture of its front.
        back: Texture of its back.
        scale: The texture's coordinates are `scale * (s, t) + offset`.
        offset: See `scale`.
        tiled: Whether the texture repeats.
    """

    front: np.ndarray
    back: np.ndarray
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    tiled: bool = False


@dataclass(frozen=True)
class Part:
    """Faces that belong together.

    Attributes:
        faces: The faces.
        materials: One per face.
        casts: Whether they cast shadows.
        light_resolution: Cells per side of their light maps; 1 for faces on which no shadow falls.
    """

    faces: Faces
    materials: list[Material]
    casts: bool = True
    light_resolution: int = 8


def add_box(rng: np.random.Generator, parts: list[Part], box: Box) -> None:
    """Adds a cardboard box.

    Args:
        rng: The source of randomness.
        parts: The parts of the scene, which this extends.
        box: The box.
    """
    colour = cardboard_colour(rng)
    inside = colour * rng.uniform(0.75, 1.1)
    length, width, height = box.size
    taped = rng.random() < 0.5
    materials = []
    for side in (length, width, length, width):
        outer = cardboard(rng, colour, (side, height))
        materials.append(Material(outer, cardboard(rng, inside, (side, height), printed=False)))
    for side, flap in zip((length, width, length, width), box.flap_lengths, strict=True):
        tape = 0.82 if taped and side == length else 0.0
        outer = cardboard(rng, colour, (side, flap), tape=tape, printed=rng.random() < 0.3)
        materials.append(Material(outer, cardboard(rng, inside, (side, flap), printed=False)))
    floor = cardboard(rng, inside, (length, width), printed=False)
    materials.append(Material(floor, floor))
    parts.append(Part(box.faces(), materials, light_resolution=18))
    if box.flap_angles.min() > np.pi / 2 and rng.random() < 0.3:
        _fill(rng, parts, box)


def _fill(rng: np.random.Generator, parts: list[Part], box: Box) -> None:
    """Puts a block into an open box."""
    size = box.size * rng.uniform(0.2, 0.6, 3)
    cos, sin = np.cos(box.yaw), np.sin(box.yaw)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    shift = rotation @ np.append((box.size - size)[:2] * rng.uniform(-0.4, 0.4, 2), 0)
    _add_block(rng, parts, np.append(box.position, size[2] / 2 + 0.02 * box.size[2]) + shift, rotation, size)


def add_floor_and_walls(rng: np.random.Generator, parts: list[Part], camera_position: np.ndarray) -> None:
    """Adds the floor and up to two walls behind what the camera looks at.

    Args:
        rng: The source of randomness.
        parts: The parts of the scene, which this extends.
        camera_position: `(3,)`.
    """
    texture = surface(rng)
    period = rng.uniform(0.5, 2.5)
    turn = rng.uniform(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    for half, below, resolution in ((FLOOR, 1e-3, 1), (FLOOR_SHADOWS, 0.0, 64)):
        edge_s, edge_t = 2 * half * np.array([(cos, sin, 0), (-sin, cos, 0)])
        origin = -(edge_s + edge_t) / 2 - (0, 0, below)
        offset = (FLOOR - half) / period
        material = Material(texture, texture, (2 * half / period,) * 2, (offset, offset), tiled=True)
        parts.append(Part(Faces.create(origin, edge_s, edge_t), [material], casts=False, light_resolution=resolution))
    away = -camera_position[:2] / np.linalg.norm(camera_position[:2])
    for _ in range(rng.integers(0, 3)):
        angle = rng.normal(0, 0.7)
        normal = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ away
        along = np.array([-normal[1], normal[0], 0]) * 12
        origin = np.append(normal * rng.uniform(0.8, 2.5), 0) - along / 2
        wall = surface(rng)
        material = Material(wall, wall, (12 / period, 4 / period), (rng.random(), rng.random()), tiled=True)
        parts.append(Part(Faces.create(origin, along, (0, 0, 4)), [material], casts=False, light_resolution=1))


def add_clutter(
    rng: np.random.Generator,
    parts: list[Part],
    footprints: list[tuple[np.ndarray, float]],
    camera_position: np.ndarray,
    amount: float,
) -> None:
    """Adds blocks, cans, sheets and plates that are scattered on the floor.

    Args:
        rng: The source of randomness.
        parts: The parts of the scene, which this extends.
        footprints: Centres `(2,)` and radii of what is already there.
        camera_position: `(3,)`; nothing is put close to it.
        amount: 1 for the usual number of things.
    """
    occupied = [*footprints, (camera_position[:2], 0.3)]
    for _ in range(rng.poisson(3 * amount)):
        _add_sheet(rng, parts)
    for _ in range(rng.poisson(9 * amount)):
        radius = rng.uniform(0.03, 0.22)
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 1.2)
        position = distance * np.array([np.cos(angle), np.sin(angle)])
        if any(np.hypot(*(position - centre)) < radius + other for centre, other in occupied):
            continue
        occupied.append((position, radius))
        height = radius * rng.uniform(0.3, 2.5)
        if rng.random() < 0.6:
            turn = rng.uniform(0, 2 * np.pi)
            rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
            size = np.array([radius * rng.uniform(0.5, 1.3), radius * rng.uniform(0.5, 1.3), height])
            _add_block(rng, parts, np.append(position, height / 2), rotation, size)
        else:
            _add_can(rng, parts, position, radius * 0.7, height)


def add_occluder(rng: np.random.Generator, parts: list[Part], camera_position: np.ndarray, points: np.ndarray) -> None:
    """Adds a bar, such as a robot arm, between the camera and one of some points.

    Args:
        rng: The source of randomness.
        parts: The parts of the scene, which this extends.
        camera_position: `(3,)`.
        points: `(N, 3)`, one of which the bar hides or nearly hides.
    """
    point = points[rng.integers(len(points))]
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    side = np.cross(axis, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    rotation = np.stack([side, np.cross(axis, side), axis], axis=1)
    size = np.array([*rng.uniform(0.02, 0.09, 2), rng.uniform(0.5, 1.2)])
    centre = camera_position + rng.uniform(0.45, 0.8) * (point - camera_position)
    centre = centre + axis * size[2] * rng.uniform(-0.4, 0.4) + rng.normal(0, 0.03, 3)
    _add_block(rng, parts, centre, rotation, size)


def _add_block(
    rng: np.random.Generator, parts: list[Part], centre: np.ndarray, rotation: np.ndarray, size: np.ndarray
) -> None:
    """Adds a solid block whose sides run along the columns of `rotation`."""
    a, b, c = rotation.T * size[:, None]
    low = centre - (a + b + c) / 2
    faces = [(low, a, c), (low + a, b, c), (low + a + b, -a, c), (low + b, -b, c), (low + c, a, b), (low, b, a)]
    origins, edges_s, edges_t = (np.stack(column) for column in zip(*faces, strict=True))
    parts.append(Part(Faces.create(origins, edges_s, edges_t), _skin(rng, 6)))


def _add_can(rng: np.random.Generator, parts: list[Part], position: np.ndarray, radius: float, height: float) -> None:
    """Adds an upright cylinder."""
    sides = 14
    angles = np.arange(sides) / sides * 2 * np.pi
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides)], axis=1) * radius + (*position, 0)
    up = np.array([0, 0, height])
    texture = surface(rng, 64)
    strips = [Material(texture, texture, (1 / sides, 1.0), (i / sides, 0.0), tiled=True) for i in range(sides)]
    parts.append(Part(Faces.create(ring, np.roll(ring, -1, axis=0) - ring, up), strips, light_resolution=4))
    lid = np.broadcast_to(random_colour(rng), (1, 1, 3))
    corner = np.append(position - radius, height)
    top = Faces.create(corner, (2 * radius, 0, 0), (0, 2 * radius, 0), discs=True)
    parts.append(Part(top, [Material(lid, lid)]))


def _add_sheet(rng: np.random.Generator, parts: list[Part]) -> None:
    """Adds a sheet or a plate that lies flat on the floor."""
    angle, turn = rng.uniform(0, 2 * np.pi, 2)
    centre = rng.uniform(0.1, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    width, length = rng.uniform(0.05, 0.5, 2)
    edge_s = width * np.array([np.cos(turn), np.sin(turn), 0])
    edge_t = length * np.array([-np.sin(turn), np.cos(turn), 0])
    origin = np.append(centre, rng.uniform(1e-3, 3e-3)) - (edge_s + edge_t) / 2
    faces = Faces.create(origin, edge_s, edge_t, rng.uniform(0, 0.2), discs=rng.random() < 0.25)
    parts.append(Part(faces, _skin(rng, 1), casts=False, light_resolution=12))


def _skin(rng: np.random.Generator, count: int) -> list[Material]:
    """Materials for the faces of a thing: each face shows a random part of the same texture."""
    texture = surface(rng, 96) if rng.random() < 0.6 else np.broadcast_to(random_colour(rng), (1, 1, 3))
    scale = rng.uniform(0.4, 1.5)
    return [Material(texture, texture, (scale, scale), tuple(rng.random(2)), tiled=True) for _ in range(count)]
