"""A stream on onnxruntime alone: python stream_without_frameflex.py step_folder video.mp4

The folder comes from frameflex: export_step("causal.safetensors", "step_folder"). Needs numpy, onnxruntime and av.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime

folder, video = Path(sys.argv[1]), sys.argv[2]
stride = int(sys.argv[3]) if len(sys.argv) > 3 else 1
manifest = json.loads((folder / "manifest.json").read_text())
pixels = manifest["preprocessing"]
mean, std = (np.array(pixels[name], np.float32)[:, None, None] for name in ("mean", "std"))
session = onnxruntime.InferenceSession(str(folder / manifest["graphs"][0]["file"]))
names = [tensor["input"] for tensor in manifest["state"]]
state = [np.zeros([1, *tensor["shape"][1:]], np.float32) for tensor in manifest["state"]]
total, seen = 0.0, 0
for number, frame in enumerate(av.open(video).decode(video=0)):
    if number % stride:
        continue
    scale, crop = pixels["short_side"] / min(frame.width, frame.height), pixels["crop_size"]
    image = frame.to_ndarray(
        format="rgb24",
        width=int(frame.width * scale),
        height=int(frame.height * scale),
        interpolation="BILINEAR",
    )
    top, left = ((side - crop) // 2 for side in image.shape[:2])
    image = image[top : top + crop, left : left + crop].transpose(2, 0, 1).astype(np.float32) / 255
    image = (image - mean) / std
    image = image if pixels["channel_order"] == "rgb" else image[::-1]
    logits, *state = session.run(None, {"frame": image[None], **dict(zip(names, state, strict=True))})
    total, seen = total + logits[0], seen + 1
    odds = np.exp(total / seen - (total / seen).max())
    best = int(odds.argmax())
    print(f"frame {number}: {manifest['class_names'][best]} ({odds[best] / odds.sum():.2f})")
