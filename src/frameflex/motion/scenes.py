"""What the bundled benchmark shows: its classes, and the frames of a video of each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_NUM_FRAMES = range(24, 49, 2)  # even, so that half a period is a whole number of frames
_NUM_DISTRACTORS = (1, 3)  # from the first, below the second


@dataclass(frozen=True)
class MotionClass:
    """One thing that can happen in a video.

    Args:
        template: the class's name as Something-Something writes it, with `[something]` for the object.
        change: what changes: "x", "y", "size", "angle" or "opacity".
        order: how the sweep of that change from one end to the other is played: "forward", "backward",
            "there_and_back" or "back_and_there" (the same loop, entered half a period later).
    """

    template: str
    change: str
    order: str

    @property
    def label(self) -> str:
        """The class's name in labels.json: the template without brackets."""
        return self.template.replace("[", "").replace("]", "")


CLASSES: tuple[MotionClass, ...] = (
    MotionClass("Moving [something] from left to right", "x", "forward"),
    MotionClass("Moving [something] from right to left", "x", "backward"),
    MotionClass("Moving [something] down", "y", "forward"),
    MotionClass("Moving [something] up", "y", "backward"),
    MotionClass("Moving [something] towards the camera", "size", "forward"),
    MotionClass("Moving [something] away from the camera", "size", "backward"),
    MotionClass("Turning [something] clockwise", "angle", "forward"),
    MotionClass("Turning [something] anticlockwise", "angle", "backward"),
    MotionClass("[Something] appearing", "opacity", "forward"),
    MotionClass("[Something] vanishing", "opacity", "backward"),
    MotionClass("Moving [something] right and then back left", "x", "there_and_back"),
    MotionClass("Moving [something] left and then back right", "x", "back_and_there"),
)


def render_frames(class_index: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw one video of a class.

    The same state of `rng` gives a class and its twin the same frames in another order: reversed for a movement
    in one direction, rolled by half the video for one that goes and comes back.

    Args:
        class_index: index into `CLASSES`.
        rng: where everything random comes from: scene, number of frames, speed, size, start, light, camera.
        size: height and width in pixels, at least 16.

    Returns:
        RGB uint8 `(N, size, size, 3)`; N is even and 24 to 48.

    Raises:
        ValueError: if the class does not exist or the size is below 16.
    """
    return draw(class_index, rng, size)[0]


def draw(class_index: int, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """The frames of `render_frames`, and the name of what moves in them."""
    if not 0 <= class_index < len(CLASSES):
        raise ValueError(
            f"class_index is {class_index}; expected 0 to {len(CLASSES) - 1}, an index of CLASSES."
        )
    if size < 16:
        raise ValueError(f"size is {size}; expected at least 16 pixels.")
    motion = CLASSES[class_index]
    num_frames = int(rng.choice(_NUM_FRAMES))
    time = (np.arange(num_frames, dtype=np.float32) + 0.5) / num_frames

    progress = _played(_uneven(time, rng), motion.order)
    camera = _camera(time, rng)
    canvas = _background(rng, size, camera)
    for _ in range(rng.integers(*_NUM_DISTRACTORS)):
        distractor = _Thing.drawn(rng)
        _paint(canvas, distractor, _distractor_path(rng, time, camera))
    thing = _Thing.drawn(rng)
    _paint(canvas, thing, _object_path(motion.change, rng, progress, camera))
    canvas *= _light(rng, size, time)
    frames = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    # A twin is the whole of its partner in another order, so that nothing but the order can tell them apart.
    if motion.order == "backward":
        frames = frames[::-1]
    elif motion.order == "back_and_there":
        frames = np.roll(frames, num_frames // 2, axis=0)
    return np.ascontiguousarray(frames), thing.name


# Time. All that moves beside the object is stationary on a circle as long as the video: its distribution is the
# same played backwards or entered half a period later, so that it betrays no class.


def _uneven(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Progress from 0 to 1, strictly rising, faster here and slower there."""
    phase = rng.uniform(0, 2 * np.pi)
    return time + rng.uniform(0, 0.6) / (2 * np.pi) * (np.sin(2 * np.pi * time + phase) - np.sin(phase))


def _played(sweep: np.ndarray, order: str) -> np.ndarray:
    """The sweep as it is, or there and back over the same positions: every second one, then the others."""
    if order in ("there_and_back", "back_and_there"):
        return np.concatenate([sweep[0::2], sweep[1::2][::-1]])
    return sweep


def _camera(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the scene is displaced to by a shaking hand: (2, N), x and y."""
    return np.stack([_sway(time, rng, 0.03) for _ in "xy"]) + rng.normal(0, 0.006, (2, len(time)))


def _sway(time: np.ndarray, rng: np.random.Generator, amplitude: float) -> np.ndarray:
    turns = np.arange(1, 4)[:, None]
    waves = np.sin(2 * np.pi * (turns * time + rng.uniform(0, 1, (3, 1)))) / turns
    return (waves * rng.uniform(0, amplitude, (3, 1))).sum(axis=0)


# Space. Lengths are in units of the picture's side; positions are of the object's centre, y downwards.


@dataclass
class _Path:
    """An object through the video: one value a frame."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray  # radians, clockwise on the screen
    opacity: np.ndarray


def _object_path(change: str, rng: np.random.Generator, progress: np.ndarray, camera: np.ndarray) -> _Path:
    # Every value is drawn for every class, and in the same manner, so that what does not change tells nothing.
    centred = progress - 0.5
    travel = rng.uniform(0.45, 0.75)
    slant = rng.uniform(-0.25, 0.25)  # radians
    x, y = rng.uniform(0.35, 0.65, 2)
    growth = rng.uniform(0.8, 1.4)  # of the logarithm
    radius = rng.uniform(0.15, 0.24)
    angle = rng.uniform(0, 2 * np.pi)
    turn = rng.uniform(2.5, 5.5)  # radians
    lever = rng.uniform(0.4, 0.8)  # radii
    opacity = rng.uniform(0.75, 1.0)
    hidden = rng.uniform(0.0, 0.25)

    path = {"x": x, "y": y, "radius": radius, "angle": angle, "opacity": opacity}
    if change in ("x", "y"):
        across = "y" if change == "x" else "x"
        path[change] += travel * np.cos(slant) * centred
        path[across] += travel * np.sin(slant) * centred
    elif change == "size":
        path["radius"] *= np.exp(growth * centred)
    elif change == "angle":
        path["angle"] += turn * centred
        # About a point off its centre, as a hand turns a thing.
        path["x"] += lever * radius * (np.cos(path["angle"]) - np.cos(angle))
        path["y"] += lever * radius * (np.sin(path["angle"]) - np.sin(angle))
    else:
        path["opacity"] = hidden + (opacity - hidden) * progress
    full = {name: np.broadcast_to(value, progress.shape) for name, value in path.items()}
    full["x"] = full["x"] + camera[0]
    full["y"] = full["y"] + camera[1]
    return _Path(**full)


def _distractor_path(rng: np.random.Generator, time: np.ndarray, camera: np.ndarray) -> _Path:
    still = np.ones_like(time)
    return _Path(
        x=rng.uniform(0, 1) + camera[0] + _sway(time, rng, 0.06),
        y=rng.uniform(0, 1) + camera[1] + _sway(time, rng, 0.06),
        radius=rng.uniform(0.07, 0.13) * still,
        angle=rng.uniform(0, 2 * np.pi) + _sway(time, rng, 0.1),
        opacity=rng.uniform(0.75, 1.0) * still,
    )


_SHAPES: dict[
    str, Callable[[np.ndarray, np.ndarray], np.ndarray]
] = {  # signed distance from the outline, radii
    "disc": lambda u, v: np.hypot(u, v) - 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.8,
    "diamond": lambda u, v: (np.abs(u) + np.abs(v)) * 0.7071 - 0.8,
    "bar": lambda u, v: np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.55),
    "triangle": lambda u, v: np.maximum(np.abs(u) * 0.866 - v * 0.5, v) - 0.55,
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.4), np.maximum(np.abs(v) - 1.0, np.abs(u) - 0.4)
    ),
}
_REACH = 1.3  # radii: no shape goes further from its centre


@dataclass
class _Thing:
    shape: str
    pattern: str
    texture: np.ndarray  # float32 (64, 64, 3), spans [-_REACH, _REACH] radii

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.shape}"

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "_Thing":
        shape = str(rng.choice(list(_SHAPES)))
        pattern = str(rng.choice(["striped", "checked", "mottled"]))
        v, u = np.mgrid[0:64, 0:64].astype(np.float32) / 64
        tilt, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2.5, 4.5), rng.uniform(0, 2 * np.pi, 2)
        along = np.sin(2 * np.pi * frequency * (np.cos(tilt) * u + np.sin(tilt) * v) + phase[0])
        across = np.sin(2 * np.pi * frequency * (np.cos(tilt) * v - np.sin(tilt) * u) + phase[1])
        blotches = _noise(rng, 64, 6)[..., 0]
        wave = {"striped": along, "checked": along * across * 2, "mottled": 2.5 * blotches}[pattern]
        # One end differs from the other, so that four frames suffice to tell which way the thing turned.
        slope = np.sin(tilt) * (u - 0.5) - np.cos(tilt) * (v - 0.5)
        mix = np.clip(0.5 + 0.6 * wave + 0.3 * blotches + 2 * slope, 0, 1)[..., None]
        first = rng.uniform(170, 255, 3)
        second = rng.uniform(70, 180, 3)
        shade = 30 * _noise(rng, 64, 2)
        texture = first * mix + second * (1 - mix) + shade
        return cls(shape, pattern, texture.astype(np.float32))


def _noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth noise (side, side, 3), about -1 to 1, with `cells` blotches to a side."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1, 3)).astype(np.float32)
    where = np.arange(side, dtype=np.float32) * (cells / side)
    low = where.astype(int)
    part = where - low
    part = part * part * (3 - 2 * part)
    rows = grid[low] * (1 - part)[:, None, None] + grid[low + 1] * part[:, None, None]
    return rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]


def _background(rng: np.random.Generator, size: int, camera: np.ndarray) -> np.ndarray:
    """A large textured plane seen through the moving camera: float32 (N, size, size, 3)."""
    margin = int(np.ceil(0.15 * size))
    side = size + 2 * margin
    plane = rng.uniform(40, 110, 3) + 20 * _noise(rng, side, 3) + 15 * _noise(rng, side, 12)
    plane = (plane + 10 * _noise(rng, side, 24)).astype(np.float32)
    canvas = np.empty((camera.shape[1], size, size, 3), np.float32)
    for frame, shift in zip(canvas, camera.T, strict=True):
        left, top = np.clip(margin - shift * size, 0, 2 * margin - 1.001)
        x, y = int(left), int(top)
        fx, fy = np.float32(left - x), np.float32(top - y)
        rows = plane[y : y + size] * (1 - fy) + plane[y + 1 : y + size + 1] * fy
        frame[:] = rows[:, x : x + size] * (1 - fx) + rows[:, x + 1 : x + size + 1] * fx
    return canvas


def _paint(canvas: np.ndarray, thing: _Thing, path: _Path) -> None:
    """Blend an object into (N, size, size, 3), all frames at once, inside the window that it can reach."""
    size = canvas.shape[1]
    radius = (path.radius * size).astype(np.float32)[:, None, None]
    centre = np.stack([path.x, path.y]).astype(np.float32) * size
    window = int(np.ceil(2 * _REACH * radius.max())) + 2
    corner = np.floor(centre - window / 2).astype(int)
    steps = np.arange(window, dtype=np.float32) + 0.5
    dx = (corner[0][:, None] + steps - centre[0][:, None])[:, None, :]  # (N, 1, window)
    dy = (corner[1][:, None] + steps - centre[1][:, None])[:, :, None]  # (N, window, 1)
    cos = np.cos(path.angle).astype(np.float32)[:, None, None] / radius
    sin = np.sin(path.angle).astype(np.float32)[:, None, None] / radius
    u = cos * dx + sin * dy
    v = cos * dy - sin * dx
    coverage = np.clip(0.5 - _SHAPES[thing.shape](u, v) * radius, 0, 1)
    coverage *= path.opacity.astype(np.float32)[:, None, None]
    texels = thing.texture.shape[0]
    scale, last = texels / (2 * _REACH), texels - 1
    column = np.clip((u + _REACH) * scale, 0, last).astype(np.intp)
    row = np.clip((v + _REACH) * scale, 0, last).astype(np.intp)
    colour = thing.texture.reshape(-1, 3)[row * texels + column]
    for frame, x, y, cover, paint in zip(canvas, *corner, coverage[..., None], colour, strict=True):
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + window, size), min(y + window, size)
        if left >= right or top >= bottom:
            continue
        inside = np.s_[top - y : bottom - y, left - x : right - x]
        seen = frame[top:bottom, left:right]
        seen += cover[inside] * (paint[inside] - seen)


def _light(rng: np.random.Generator, size: int, time: np.ndarray) -> np.ndarray:
    """A lamp of some brightness, flickering slowly, stronger on one side: (N, size, size, 1)."""
    brightness = rng.uniform(0.75, 1.15) * (1 + _sway(time, rng, 0.04))
    across = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.12, 0.12, 2)
    ramp = 1 + slope[0] * across[None, :] + slope[1] * across[:, None]
    return (brightness[:, None, None] * ramp)[..., None].astype(np.float32)
