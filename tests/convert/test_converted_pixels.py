"""A converted checkpoint sees the pixels that its own code base would show it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from published_networks import mmaction2_name, resnet, save

from frameflex.convert import convert
from frameflex.data.transforms import EvalTransform


def rendered(width, height, num_frames=2):
    """Pictures with edges, slopes, fine texture and writing, as videos have them."""
    pictures = []
    for t in range(num_frames):
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for i in range(0, width, 9):
            draw.line([(i, 0), (width - i, height)], fill=(i % 256, 40, 255 - i % 256), width=1 + i % 3)
        draw.ellipse([20 + 9 * t, 30, 90 + 9 * t, 100], fill=(250, 240, 20), outline=(0, 0, 90), width=5)
        draw.text((width // 3, height // 2), f"frame {t}: 0123456789", fill=(255, 255, 255))
        noise = Image.effect_noise((width, height), 40).convert("RGB")
        pictures.append(Image.blend(picture, noise, 0.3))
    return pictures


def pillow_road(pictures, *, crop, three, geometry):
    """Short side 256 by Pillow's bilinear filter and a crop, in whole pixels, as TSM's and mmaction2's code."""
    width, height = pictures[0].size
    longer = 256 * max(width, height) / min(width, height)
    longer = int(longer + 0.5) if geometry == "mmaction2" else int(longer)
    size = (longer, 256) if width >= height else (256, longer)
    spare = longer - 256
    if not three:
        places = [
            tuple(round((side - crop) / 2) if geometry == "tsm" else (side - crop) // 2 for side in size)
        ]
    elif geometry == "tsm":
        places = [(i * (spare // 4), 0) if width >= height else (0, i * (spare // 4)) for i in (0, 2, 4)]
    else:
        places = [(i * (spare // 2), 0) if width >= height else (0, i * (spare // 2)) for i in (0, 1, 2)]
    crops = []
    for x, y in places:
        row = [p.resize(size, Image.Resampling.BILINEAR).crop((x, y, x + crop, y + crop)) for p in pictures]
        crops.append(np.stack([np.asarray(p) for p in row]))
    return torch.from_numpy(np.stack(crops)).permute(0, 4, 1, 2, 3).float()  # (crops, 3, N, h, w), 0 to 255


@pytest.fixture(scope="module")
def imported_pixels(tmp_path_factory):
    """The preprocessing that a checkpoint of each source comes with."""
    folder, model = tmp_path_factory.mktemp("sources"), resnet(18, 8)
    bgr = {"meta": {"config": "mean=[0, 0, 0], std=[1, 1, 1], to_bgr=True"}}
    files = {
        "tsm": save(folder / "tsm.pth", model),
        "mmaction2": save(folder / "mm.pth", model, name=mmaction2_name),
        "mmaction2 in bgr": save(folder / "bgr.pth", model, name=mmaction2_name, **bgr),
    }
    return {source: convert(file).checkpoint.preprocessing for source, file in files.items()}


@pytest.mark.parametrize("size", [(320, 240), (427, 240), (240, 427), (500, 333), (171, 128)])
@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("source", ["tsm", "mmaction2", "mmaction2 in bgr"])
def test_an_imported_checkpoint_sees_its_sources_pixels_within_a_grey_level(
    size, three, source, imported_pixels
):
    geometry, pixels = source.split()[0], imported_pixels[source]
    pictures = rendered(*size)
    frames = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
    seen = EvalTransform(pixels, num_crops=3 if three else 1)(frames)
    expected = pillow_road(pictures, crop=256 if three else 224, three=three, geometry=geometry)
    if source.endswith("bgr"):  # from 0 to 255, blue first
        expected = expected.flip(1)
        scale = 1.0
    else:
        mean, std = (
            torch.tensor(values)[:, None, None, None]
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        expected = (expected / 255 - mean) / std
        scale = 255 * float(std.mean())
    assert seen.shape == expected.shape
    assert float((seen - expected).abs().mean()) * scale < 1
    assert float((seen - expected).abs().max()) * scale < 3
