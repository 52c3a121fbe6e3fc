"""Frames into clips: one crop, one flip and one set of augmentations for all frames of a clip.

Every transform takes all frames of a video that any clip of it needs in one call, so that its clips at
several frame counts see the same pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from frameflex.data.directions import NEVER_FLIPPED

__all__ = [
    "VIEWS",
    "EvalTransform",
    "Preprocessing",
    "TrainTransform",
]

# How a video is looked at in a test, "temporal views x crops" as papers write it.
VIEWS = {"1x1": (1, 1), "2x1": (2, 1), "1x3": (1, 3), "2x3": (2, 3)}

CHANNEL_ORDERS = ("rgb", "bgr")
GEOMETRIES = ("torchvision", "tsm", "mmaction2")
FITS = ("crop", "whole", "pad")

_INTERPOLATIONS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its pixels; travels in the checkpoint.

    Attributes:
        short_side: the video's shorter side after resizing, in pixels; its aspect ratio is kept. For the fit
            "crop" alone.
        crop_size: what the model sees, in pixels: the side of a square, or (height, width). With the fit "crop" both
            at most `short_side`, so that they fit into upright and flat videos.
        mean: per channel R, G, B, on the scale from 0 to 1; ImageNet's by default. A model that expects values from
            0 to 255 has mean 0 and std 1/255.
        std: per channel R, G, B, on the scale from 0 to 1, above 0.
        interpolation: "bilinear", "bicubic" or "nearest".
        antialias: smooth before shrinking (bilinear and bicubic only), as Pillow always does.
        channel_order: in which the model sees the colours, "rgb" or "bgr". Mean and std are those of R, G and B
            either way.
        geometry: how sizes and places in whole pixels come about. "torchvision": the longer side rounded down,
            three crops from edge to edge. "tsm": crops at multiples of a quarter of the spare side, rounded down,
            as TSM's code has them. "mmaction2": the longer side rounded to the nearest, crops at multiples of half
            the spare side, rounded down.
        fit: how a frame comes to `crop_size`. "crop": its centre. "whole": all of it, resized whatever its aspect.
            "pad": all of it, its aspect kept, in the middle of a border of the mean colour.

    Raises:
        ValueError: if a value is out of range.
    """

    short_side: int = 256
    crop_size: int | tuple[int, int] = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = True
    channel_order: str = "rgb"
    geometry: str = "torchvision"
    fit: str = "crop"

    def __post_init__(self) -> None:
        if not _is_pixels(self.short_side):
            raise ValueError(
                f"preprocessing: short_side is {self.short_side!r}; expected whole pixels, 1 or more."
            )
        given: Any = self.crop_size  # a list, as JSON and YAML have it
        sides = (given, given) if _is_pixels(given) else given
        if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_pixels, sides)):
            raise ValueError(
                f"preprocessing: crop_size is {given!r}; expected whole pixels, 1 or more: the side of a square, or "
                "height and width."
            )
        object.__setattr__(self, "crop_size", sides[0] if sides[0] == sides[1] else tuple(sides))
        if self.fit == "crop" and max(sides) > self.short_side:
            raise ValueError(
                f"preprocessing: crop_size {given} is larger than short_side {self.short_side}; "
                f"expected a crop that fits. Set short_side to {max(sides)} or more, or fit to whole or pad."
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if (
                not isinstance(value, Sequence)
                or len(value) != 3
                or any(isinstance(number, bool) or not isinstance(number, int | float) for number in value)
            ):
                raise ValueError(
                    f"preprocessing: {name} is {value!r}; expected three numbers, for R, G and B."
                )
            object.__setattr__(self, name, tuple(float(number) for number in value))
        if not all(0 < number < float("inf") for number in self.std):
            raise ValueError(f"preprocessing: std is {self.std}; expected numbers above 0.")
        if not all(abs(number) < float("inf") for number in self.mean):
            raise ValueError(f"preprocessing: mean is {self.mean}; expected finite numbers.")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"preprocessing: interpolation is {self.interpolation!r}; "
                f"expected one of {', '.join(_INTERPOLATIONS)}."
            )
        if not isinstance(self.antialias, bool):
            raise ValueError(f"preprocessing: antialias is {self.antialias!r}; expected true or false.")
        for name, known in (
            ("channel_order", CHANNEL_ORDERS),
            ("geometry", GEOMETRIES),
            ("fit", FITS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"preprocessing: {name} is {getattr(self, name)!r}; expected one of {', '.join(known)}."
                )

    @property
    def size(self) -> tuple[int, int]:
        """What the model sees, in pixels: `(height, width)`."""
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size

    def describe_fit(self) -> str:
        """Say how a frame comes to its size, such as "short side 256 (bilinear), centre crop 224"."""
        height, width = self.size
        if self.fit == "crop":
            crop = f"{height}" if height == width else f"{height} x {width}"
            return f"short side {self.short_side} ({self.interpolation}), centre crop {crop}"
        how = "resized" if self.fit == "whole" else "padded"
        return f"the whole frame, {how} to {height} x {width} ({self.interpolation})"

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain values for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Build from `to_dict`'s values; absent ones take the default.

        Raises:
            ValueError: on an unknown name or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"preprocessing is {values!r}; expected a mapping of names to values.")
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"preprocessing has unknown {', '.join(unknown)}; expected only {', '.join(known)}. "
                "If a newer version of frameflex wrote it, update frameflex."
            )
        return cls(**values)


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class EvalTransform:
    """Frames of one video into normalised crops, without randomness.

    With one crop the shorter side becomes `short_side` and the centre `crop_size` is taken
    ("efficient" testing of TSM). With three, squares of the full `short_side` at the start, centre and end
    of the longer side are taken, so that nothing is cut off ("accurate" testing; the crop is `short_side`,
    not `crop_size`). With the fits "whole" and "pad" there is one crop, the whole frame.

    Args:
        preprocessing: sizes and normalisation.
        num_crops: 1 or 3.

    Raises:
        ValueError: if `num_crops` is neither, or 3 where one crop is the whole frame.
    """

    def __init__(self, preprocessing: Preprocessing, *, num_crops: int = 1) -> None:
        if num_crops not in (1, 3):
            raise ValueError(f"num_crops is {num_crops}; expected 1 (centre) or 3 (along the longer side).")
        if num_crops > 1 and preprocessing.fit != "crop":
            raise ValueError(
                f"{num_crops} crops of a model that sees the whole frame (fit {preprocessing.fit}); expected 1: "
                "there is nothing beside it. Ask for the views 1x1, or 2x1 for two looks at other frames."
            )
        self.preprocessing = preprocessing
        self.num_crops = num_crops

    def __call__(self, frames: Tensor) -> Tensor:
        """Resize, crop and normalise.

        Args:
            frames: RGB, uint8 `(N, 3, H, W)`.

        Returns:
            float32 `(num_crops, 3, N, h, w)`.

        Raises:
            ValueError: if frames are not uint8 RGB.
        """
        return self.normalise(self.crops(frames))

    def crops(self, frames: Tensor) -> Tensor:
        """Resize and crop alone: uint8 `(num_crops, N, 3, h, w)`, for who keeps frames for later; errors as above."""
        _check_frames(frames)
        if self.preprocessing.fit != "crop":
            return _whole(frames, self.preprocessing)[None]
        side, crop = self.preprocessing.short_side, self.preprocessing.size
        height, width = frames.shape[-2:]
        longer = max(height, width) * side / min(height, width)
        long_side = max(
            side, int(longer + 0.5) if self.preprocessing.geometry == "mmaction2" else int(longer)
        )
        size = (side, long_side) if height <= width else (long_side, side)
        frames = _resize(frames, size, self.preprocessing)
        if self.num_crops == 1:
            top, left = (
                _centre(pixels - taken, self.preprocessing.geometry)
                for pixels, taken in zip(size, crop, strict=True)
            )
            places = [(top, left)]
        else:
            crop = side, side
            starts = _three_places(long_side - side, self.preprocessing.geometry)
            places = [(0, start) if height <= width else (start, 0) for start in starts]
        return torch.stack([frames[..., top : top + crop[0], left : left + crop[1]] for top, left in places])

    def normalise(self, crops: Tensor) -> Tensor:
        """Turn what `crops` gives into the clip, float32 `(num_crops, 3, N, h, w)`."""
        return _normalise(crops, self.preprocessing)


def _centre(spare: int, geometry: str) -> int:
    return spare // 2 if geometry == "mmaction2" else round(spare / 2)


def _three_places(spare: int, geometry: str) -> tuple[int, int, int]:
    """Where crops at the start, centre and end begin, with ``spare`` pixels more than one crop needs."""
    if geometry == "tsm":
        return 0, 2 * (spare // 4), 4 * (spare // 4)
    return 0, spare // 2, 2 * (spare // 2) if geometry == "mmaction2" else spare


class TrainTransform:
    """Frames of one video into one augmented, normalised clip.

    In this order: a TSN-style multi-scale crop (arXiv 1507.02159, section 3.2: two of the scales, at most
    one step apart, times the shorter side for its height and width, at one of 13 fixed places), resized to
    `crop_size`; a horizontal flip for every second clip; colour jitter; RandAugment; normalisation. All
    frames get the same draw, from torch's global generator: seed that to repeat a clip.

    With the fits "whole" and "pad" the crop is a window of 85 to 100 % of the frame's height and of its width, each
    drawn on its own, so that hardly anything of a movement is cut off.

    A flip turns "left to right" into "right to left". Pass `flip_label=exchange_directions(class_names)` so
    that the label turns with it; without it labels stay as they are.

    Args:
        preprocessing: sizes and normalisation.
        multi_scale_crop: crop sides relative to the shorter side, each above 0 and at most 1, largest first; for a
            `crop_size` that is no square, its longer side, the other one in proportion. For the fit "crop" alone.
        flip: flip every second clip.
        flip_label: for each class the class of its mirror image, or `NEVER_FLIPPED`.
        color_jitter: strength from 0 (off) to 1 of random brightness, contrast and saturation.
        rand_augment: the magnitude of two random operations (arXiv 1909.13719), 0 to 30; True for 9, False
            for none.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        multi_scale_crop: Sequence[float] = (1, 0.875, 0.75, 0.66),
        flip: bool = True,
        flip_label: Sequence[int] | None = None,
        color_jitter: float = 0.0,
        rand_augment: bool | int = False,
    ) -> None:
        if not multi_scale_crop or not all(0 < scale <= 1 for scale in multi_scale_crop):
            raise ValueError(
                f"multi_scale_crop is {multi_scale_crop}; expected scales above 0 and at most 1."
            )
        if flip_label is not None and not all(
            NEVER_FLIPPED <= mirrored < len(flip_label) for mirrored in flip_label
        ):
            raise ValueError(
                f"flip_label is {list(flip_label)}; "
                f"expected a class index or {NEVER_FLIPPED} for each class. Use exchange_directions(class_names)."
            )
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter is {color_jitter}; expected 0 (off) to 1.")
        magnitude = 9 if rand_augment is True else int(rand_augment)
        if not 0 <= magnitude <= 30:
            raise ValueError(
                f"rand_augment is {rand_augment}; expected true, false or a magnitude from 0 to 30."
            )
        self.preprocessing = preprocessing
        self.multi_scale_crop = tuple(multi_scale_crop)
        self.flip = flip
        self.flip_label = None if flip_label is None else tuple(flip_label)
        self.color_jitter = color_jitter
        self.rand_augment = magnitude
        self._augmentations: list[v2.Transform] = []
        if color_jitter > 0:
            self._augmentations.append(
                v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter)
            )
        if magnitude > 0:
            self._augmentations.append(v2.RandAugment(num_ops=2, magnitude=magnitude))

    @property
    def smallest(self) -> tuple[int, int]:
        """Height and width of frames from which no crop that is drawn has to be enlarged."""
        if self.preprocessing.fit == "crop":
            side = math.ceil(max(self.preprocessing.size) / min(self.multi_scale_crop))
            return side, side
        height, width = (math.ceil(side / (1 - _CUT_OFF)) for side in self.preprocessing.size)
        return height, width

    def __call__(self, frames: Tensor, label: int) -> tuple[Tensor, int]:
        """Augment all frames alike.

        Args:
            frames: RGB, uint8 `(N, 3, H, W)`.
            label: class index, or -1 when unknown.

        Returns:
            clip: float32 `(3, N, h, w)`, of `crop_size`.
            label: the class that the clip shows now.

        Raises:
            ValueError: if frames are not uint8 RGB, or the label has no entry in `flip_label`.
        """
        _check_frames(frames)
        whole = self.preprocessing.fit != "crop"
        draw = self._draw_window if whole else self._draw_crop
        top, left, height, width = draw(*frames.shape[-2:])
        frames = frames[..., top : top + height, left : left + width]
        # Cropping first leaves fewer pixels to resize; resizing uint8 is faster than resizing float.
        fit = _whole if whole else _resize_to_crop
        frames = fit(frames, self.preprocessing)
        if self.flip:
            mirrored = self._mirrored(label)
            # Drawn for every class, so that what is drawn next does not depend on the label.
            if float(torch.rand(())) < 0.5 and mirrored is not None:
                frames, label = frames.flip(-1), mirrored
        for augment in self._augmentations:
            frames = augment(frames)
        return _normalise(frames, self.preprocessing), label

    def _mirrored(self, label: int) -> int | None:
        if self.flip_label is None or label == -1:
            return label
        if not 0 <= label < len(self.flip_label):
            raise ValueError(
                f"label is {label}; flip_label has {len(self.flip_label)} classes. "
                "Build it from the class names of the same videos."
            )
        mirrored = self.flip_label[label]
        return None if mirrored == NEVER_FLIPPED else mirrored

    def _draw_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        window = []
        for pixels in (height, width):
            side = max(1, round(pixels * (1 - _CUT_OFF * float(torch.rand(())))))
            window.append((int(torch.randint(pixels - side + 1, ())), side))
        (top, rows), (left, columns) = window
        return top, left, rows, columns

    def _draw_crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        longest = max(self.preprocessing.size)
        rows, columns = (
            [max(1, int(min(height, width) * scale * side / longest)) for scale in self.multi_scale_crop]
            for side in self.preprocessing.size
        )
        pairs = [(h, w) for i, h in enumerate(rows) for j, w in enumerate(columns) if abs(i - j) <= 1]
        crop_height, crop_width = pairs[int(torch.randint(len(pairs), ()))]
        down, right = _CROP_PLACES[int(torch.randint(len(_CROP_PLACES), ()))]
        return (
            (height - crop_height) * down // 4,
            (width - crop_width) * right // 4,
            crop_height,
            crop_width,
        )


# In quarters of the spare height and width: corners, centre, middles of the edges; centres of the quarters.
_CROP_PLACES = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]

_CUT_OFF = 0.15  # at most, of a side, from a training clip that is to show the whole frame


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or frames.numel() == 0:
        raise ValueError(
            f"frames are {frames.dtype} {tuple(frames.shape)}; expected RGB uint8 (N, 3, H, W), "
            "as open_video(...).frames gives them."
        )


def _whole(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    """All of each frame at the model's size, squeezed ("whole") or with a border ("pad")."""
    height, width = preprocessing.size
    if preprocessing.fit == "whole":
        return _resize(frames, (height, width), preprocessing)
    scale = min(height / frames.shape[-2], width / frames.shape[-1])
    rows, columns = (max(1, round(pixels * scale)) for pixels in frames.shape[-2:])
    frames = _resize(frames, (rows, columns), preprocessing)
    top, left = (height - rows) // 2, (width - columns) // 2
    # The mean colour is 0 once it is normalised, as beyond the edges inside the network.
    colour = (torch.tensor(preprocessing.mean) * 255).round().clamp(0, 255).to(torch.uint8)
    padded = colour.view(3, 1, 1).expand(3, height, width).repeat(len(frames), 1, 1, 1).to(frames.device)
    padded[..., top : top + rows, left : left + columns] = frames
    return padded


def _resize_to_crop(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    return _resize(frames, preprocessing.size, preprocessing)


def _resize(frames: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    if tuple(frames.shape[-2:]) == size:
        return frames
    return functional.resize(
        frames,
        list(size),
        interpolation=_INTERPOLATIONS[preprocessing.interpolation],
        antialias=preprocessing.antialias,
    )


def _normalise(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn RGB uint8 `(..., N, 3, h, w)` into float32 `(..., 3, N, h, w)`, contiguous, normalised per channel."""
    frames = frames.transpose(-4, -3)  # (..., 3, N, h, w)
    clip = torch.empty(frames.shape, dtype=torch.float32, device=frames.device)
    # A channel at a time: on a CPU faster than broadcasting mean and std as tensors.
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        plane = clip.select(-4, channel if preprocessing.channel_order == "rgb" else 2 - channel)
        torch.mul(frames.select(-4, channel), 1 / (255 * std), out=plane)
        plane.sub_(mean / std)
    return clip
