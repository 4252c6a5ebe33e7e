"""Random scenes: cardboard boxes among other things, with a random floor, lighting and camera.

F faces, L lights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keypoint_detection.data.boxes.box import CORNERS, FLAP_CORNERS, Box
from keypoint_detection.data.boxes.geometry import HIDING_MARGIN, Camera, Faces
from keypoint_detection.data.boxes.objects import (
    Material,
    Part,
    add_box,
    add_clutter,
    add_floor_and_walls,
    add_occluder,
)

# A scene with fewer visible keypoints per box than this is drawn again; `ATTEMPTS` scenes are drawn at most.
LEAST_VISIBLE = 4
ATTEMPTS = 50

# Within a pixel of a corner, the faces that meet there are nearer to the camera by less than this share of its distance
# to the corner.
SLIVER_MARGIN = 0.03


@dataclass(frozen=True)
class Lights:
    """Distant lights; lamps and the sky are groups of them, which gives soft shadows.

    Attributes:
        directions: `(L, 3)` unit vectors towards the lights.
        colours: `(L, 3)` linear light that each one casts on a face that points straight at it.
        ambient: `(3,)` linear light that is everywhere.
    """

    directions: np.ndarray
    colours: np.ndarray
    ambient: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to render an image and to label it.

    Attributes:
        boxes: The boxes whose keypoints are labelled.
        faces: All faces.
        materials: One per face.
        casts: `(F,)` bool, whether a face casts a shadow.
        light_resolutions: `(F,)` cells per side of the face's light map; 1 where no shadow falls.
        camera: The camera.
        lights: The lights.
        backdrop: `(3,)` linear colour where there is no face.
    """

    boxes: list[Box]
    faces: Faces
    materials: list[Material]
    casts: np.ndarray
    light_resolutions: np.ndarray
    camera: Camera
    lights: Lights
    backdrop: np.ndarray

    def visible_keypoints(self) -> dict[str, np.ndarray]:
        """The keypoints that are inside the image and not hidden by any face.

        A corner counts as hidden if only a sliver of it is visible, because something covers most pixels around it.

        Returns:
            For each channel `(K, 3)`: x and y in continuous pixels and the depth in metres.
        """
        height, width = self.camera.size
        found: dict[str, list[np.ndarray]] = {name: [] for name in (CORNERS, FLAP_CORNERS)}
        for box in self.boxes:
            inwards = box.inwards()
            for name, points in box.keypoints().items():
                xy, depth = self.camera.project(points)
                seen = (depth > 0) & ~self.faces.hide(points, self.camera.position)
                seen &= self._shows(points, inwards[name], depth)
                seen &= (xy > 0).all(axis=1) & (xy < (width, height)).all(axis=1)
                found[name].append(np.concatenate([xy, depth[:, None]], axis=1)[seen])
        return {name: np.concatenate([np.zeros((0, 3)), *parts]) for name, parts in found.items()}

    def _shows(self, points: np.ndarray, inwards: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Whether more than a sliver is visible of corners `(K, 3)`.

        Of 8 places a pixel away, at least 3 must not be covered by anything in front of the corner, and at least one of
        the faces that meet there, in the directions `inwards` `(K, D, 3)`, must be visible.
        """
        pixel = (depth / self.camera.focal_length)[:, None, None]
        angles = np.arange(8) * np.pi / 4
        right, down, _ = self.camera.rotation
        around = points[:, None] + pixel * (np.cos(angles)[:, None] * right + np.sin(angles)[:, None] * down)
        own = points[:, None] + 1.5 * pixel * inwards
        covered, own_covered = (
            self.faces.hide(places.reshape(-1, 3), self.camera.position, margin).reshape(places.shape[:2])
            for places, margin in ((around, SLIVER_MARGIN), (own, HIDING_MARGIN))
        )
        return ((~covered).sum(axis=1) >= 3) & ~own_covered.all(axis=1)


def sample_scene(rng: np.random.Generator, size: tuple[int, int], boxes: int, clutter: float) -> Scene:
    """Draws a scene in which some keypoints of the boxes are visible and no flap is seen edge-on.

    Args:
        rng: The source of randomness.
        size: Height and width of the image in pixels.
        boxes: Number of boxes; 0 for an image without any.
        clutter: How much else there is, 0 for nothing, 1 for the usual amount.

    Returns:
        The scene.
    """
    for _ in range(ATTEMPTS):
        scene = _draw(rng, size, boxes, clutter)
        enough = sum(map(len, scene.visible_keypoints().values())) >= LEAST_VISIBLE * boxes
        if enough and not any(box.edge_on(scene.camera.position) for box in scene.boxes):
            break
    return scene


def _draw(rng: np.random.Generator, size: tuple[int, int], count: int, clutter: float) -> Scene:
    """Draws a scene without checking what is visible."""
    parts: list[Part] = []
    boxes = _place_boxes(rng, max(count, 1))
    camera = _aim(rng, boxes, size)
    add_floor_and_walls(rng, parts, camera.position)
    if count:
        for box in boxes:
            add_box(rng, parts, box)
    footprints = [(box.position, np.hypot(*box.size[:2]) / 2) for box in boxes if count]
    add_clutter(rng, parts, footprints, camera.position, clutter)
    if count and rng.random() < 0.35 * clutter:
        add_occluder(rng, parts, camera.position, boxes[0].opening())
    return Scene(
        boxes if count else [],
        Faces.join([part.faces for part in parts]),
        [material for part in parts for material in part.materials],
        np.concatenate([np.full(len(part.faces), part.casts) for part in parts]),
        np.concatenate([np.full(len(part.faces), part.light_resolution) for part in parts]),
        camera,
        _light(rng),
        rng.uniform(0.02, 0.8, 3).astype(np.float32),
    )


def _place_boxes(rng: np.random.Generator, count: int) -> list[Box]:
    """Boxes that do not overlap, the first at the origin."""
    boxes: list[Box] = []
    while len(boxes) < count:
        box = _sample_box(rng)
        reach = np.hypot(*box.size[:2]) / 2 + box.flap_lengths.max()
        angle = rng.uniform(0, 2 * np.pi)
        distance = 0.0
        if boxes:
            distance = reach + max(np.hypot(*b.size[:2]) / 2 + np.hypot(*b.position) for b in boxes)
        position = distance * np.array([np.cos(angle), np.sin(angle)])
        boxes.append(Box(box.size, position, box.yaw, box.flap_lengths, box.flap_angles, box.flap_taper))
    return boxes


def _sample_box(rng: np.random.Generator) -> Box:
    """A box of random size with flaps at plausible angles."""
    length = rng.uniform(0.25, 0.6)
    width = length * rng.uniform(0.55, 1.0)
    height = length * rng.uniform(0.25, 0.9)
    flaps = width / 2 * rng.uniform(0.7, 1.0)
    degrees = rng.uniform(92, 225, 4)
    kind = rng.random()
    if kind < 0.15:  # All four at nearly the same angle, as in a box that was just opened.
        degrees = np.clip(rng.uniform(95, 200) + rng.normal(0, 8, 4), 92, 225)
    elif kind < 0.4:  # One pair folded over the opening or into the box.
        pair = slice(1, None, 2) if rng.random() < 0.6 else slice(0, None, 2)
        degrees[pair] = rng.uniform(-75, -1, 2)
    elif kind < 0.6:  # Closed, or with one of the upper flaps still up.
        flaps = width / 2 * rng.uniform(0.86, 0.97)
        degrees = np.array([rng.uniform(0.5, 8), rng.uniform(-8, -1), rng.uniform(0.5, 8), rng.uniform(-8, -1)])
        if rng.random() < 0.4:
            degrees[rng.choice([0, 2])] = rng.uniform(20, 150)
    lengths = np.full(4, flaps)
    # No flap reaches through the ground or through the floor of the box.
    lowest = np.degrees(np.arcsin(min(1.0, 0.9 * height / flaps)))
    degrees = np.clip(degrees, -lowest, 180 + lowest)
    taper = rng.uniform(0.0, 0.07)
    return Box(
        np.array([length, width, height]), np.zeros(2), rng.uniform(0, 2 * np.pi), lengths, np.radians(degrees), taper
    )


def _aim(rng: np.random.Generator, boxes: list[Box], size: tuple[int, int]) -> Camera:
    """A camera that looks down at the boxes from anywhere around them."""
    points = np.concatenate([np.concatenate([box.corners(), *box.keypoints().values()]) for box in boxes])
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    field_of_view = np.radians(rng.uniform(30, 62))
    focal_length = min(size) / 2 / np.tan(field_of_view / 2)
    distance = radius / np.sin(field_of_view / 2) / rng.uniform(0.7, 1.2)
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.radians(rng.uniform(22, 80))
    direction = (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation))
    target = centre + rng.uniform(-0.3, 0.3, 3) * radius
    return Camera.looking_at(target, centre + distance * np.array(direction), rng.normal(0, 0.12), focal_length, size)


def _light(rng: np.random.Generator) -> Lights:
    """A sky, one to three lamps of random size and colour, and some ambient light."""
    directions, colours = [], []
    angles = np.arange(16) * 2.399963 + rng.uniform(0, 2 * np.pi)
    heights = np.linspace(0.1, 0.97, 16)
    flat = np.sqrt(1 - heights**2)
    directions.append(np.stack([flat * np.cos(angles), flat * np.sin(angles), heights], axis=1))
    sky = rng.uniform(0.3, 1.0) * np.exp(rng.normal(0, 0.08, 3)) / 8
    colours.append(np.broadcast_to(sky, (16, 3)))
    for lamp in range(rng.integers(1, 4)):
        samples = 9 if lamp == 0 else 5
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.95)
        flat = np.sqrt(1 - height**2)
        towards = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        rays = towards + rng.uniform(0.01, 0.14) * rng.standard_normal((samples, 3))
        rays[:, 2] = np.abs(rays[:, 2]) + 0.02
        directions.append(rays / np.linalg.norm(rays, axis=1, keepdims=True))
        strength = rng.uniform(0.4, 1.5) / (1 + lamp) * np.exp(rng.normal(0, 0.12, 3)) / samples
        colours.append(np.broadcast_to(strength, (samples, 3)))
    ambient = rng.uniform(0.04, 0.2) * np.ones(3)
    return Lights(np.concatenate(directions), np.concatenate(colours), ambient)
