"""Write convert/fingerprints.json: number and size of the tensors of every architecture that can be built.

With it `frameflex convert` builds only the few architectures that image weights can be of. Run it after timm has
gained architectures: python benchmarks/fingerprints.py
"""

import json
from pathlib import Path

import timm
import torch

import frameflex.convert
from frameflex.convert import fingerprint
from frameflex.models.backbones import supported_architectures

fingerprints = {}
for name in supported_architectures():
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in timm.create_model(name).state_dict().items()}
    fingerprints[name] = fingerprint(shapes)
    print(name, *fingerprints[name])
lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in fingerprints.items())
Path(frameflex.convert.__file__).with_name("fingerprints.json").write_text(
    f"{{\n{lines}\n}}\n", encoding="utf-8"
)
