"""The room Why of the page: maps, what each frame adds, and the video backwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frameflex.app.answers import Answers
from frameflex.app.pictures import SIDE, jpeg_address
from frameflex.app.talking import Talk
from frameflex.deploy.decoded import Decoded
from frameflex.deploy.explaining import activation_maps, without_frame

_TOP = 5
_STRENGTH = 0.65  # of a map's colour over the picture, where it is strongest


async def explain(
    talk: Talk, answers: Answers, video: int, decoded: Decoded, num_frames: int, index: int | None
) -> None:
    """Say what `Recognizer.explain` says, the quick parts first; the frames' importance comes one by one.

    Args:
        talk: with the tab.
        answers: whose network looks.
        video: its number in the tab.
        decoded: the video.
        num_frames: T.
        index: of the class to explain; None for the likeliest.
    """
    clip = decoded.clip(num_frames, answers.transform)[0]  # (3, T, h, w)
    forwards = (await answers.look_at(clip[None])).probabilities
    backwards = (await answers.look_at(clip.flip(1)[None])).probabilities
    chosen = int(forwards.argmax()) if index is None else index
    said = {"video": video, "frames": num_frames, "index": chosen}
    rows = decoded.shown(num_frames)
    crops = decoded.crops[rows, 0]
    text, pictures = "", []
    try:
        maps = await answers.do(lambda: activation_maps(answers.recognizer, clip, chosen))
        pictures = [painted(crop, one) for crop, one in zip(crops, maps, strict=True)]
    except ValueError as error:  # an export, whose other answers can be given
        text = str(error)
        pictures = [jpeg_address(crop.transpose(1, 2, 0)) for crop in crops]
    await talk.send(
        {
            "type": "why",
            **said,
            "label": answers.class_names[chosen],
            "predictions": [vars(one) for one in answers.best(forwards, _TOP)],
            "backwards": [vars(one) for one in answers.best(backwards, _TOP)],
            "pictures": pictures,
            "frame_numbers": [decoded.frame_numbers[row] for row in rows],
            "text": text,
        }
    )
    for frame in range(num_frames):
        without = await answers.look_at(without_frame(clip, frame)[None])
        lost = float(forwards[chosen] - without.probabilities[chosen])
        await talk.send({"type": "importance", **said, "frame": frame, "lost": lost})


def painted(crop: np.ndarray, strength: Tensor) -> str:
    """A picture's address, uint8 ``(3, h, w)``, with a map ``(h, w)`` of 0 to 1 in colour over it."""
    import matplotlib

    pixels = torch.from_numpy(crop)[None].float()
    scale = max(1.0, SIDE / max(crop.shape[1:]))  # the colours are smooth, also over a small network's pixels
    size = [round(side * scale) for side in crop.shape[1:]]
    resized = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
    shares = torch.nn.functional.interpolate(strength[None, None], size, mode="bilinear", align_corners=False)
    share = shares[0, 0].numpy()
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * share)[..., :3] * 255
    weight = (_STRENGTH * share)[..., None]
    mixed = (1 - weight) * resized.permute(1, 2, 0).numpy() + weight * colours
    return jpeg_address(mixed.round().clip(0, 255).astype(np.uint8))
