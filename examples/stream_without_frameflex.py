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
    crop, fit = pixels["crop_size"], pixels.get("fit", "crop")
    rows, columns = crop if isinstance(crop, list) else (crop, crop)
    scale = pixels["short_side"] / min(frame.width, frame.height)
    if fit == "pad":
        scale = min(rows / frame.height, columns / frame.width)
    width, height = int(frame.width * scale), int(frame.height * scale)
    if fit == "whole":
        width, height = columns, rows
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BILINEAR")
    image = image.transpose(2, 0, 1).astype(np.float32) / 255
    if fit == "pad":
        padded = np.empty((3, rows, columns), np.float32)
        padded[:] = mean
        top, left = (rows - height) // 2, (columns - width) // 2
        padded[:, top : top + height, left : left + width] = image
        image = padded
    top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
    image = image[:, top : top + rows, left : left + columns]
    image = (image - mean) / std
    image = image if pixels["channel_order"] == "rgb" else image[::-1]
    logits, *state = session.run(None, {"frame": image[None], **dict(zip(names, state, strict=True))})
    total, seen = total + logits[0], seen + 1
    odds = np.exp(total / seen - (total / seen).max())
    best = int(odds.argmax())
    print(f"frame {number}: {manifest['class_names'][best]} ({odds[best] / odds.sum():.2f})")
