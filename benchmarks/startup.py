"""How long does one command take that recognises one clip, and where does the time go?

    OMP_NUM_THREADS=1 python benchmarks/startup.py clip.mp4 [--backbones resnet50,mobilenetv2_100] [--rounds 7]

Fresh processes, in turn, each as often as there are rounds; the smallest of each number is printed: seconds by the
clock and of processors (user and system). Beside `frameflex predict` stand the imports that it can't do without, and
a plain script that reads the same checkpoint, decodes with PyAV, shifts with naive hooks and gives the same answer,
which is checked. Weights are random: time doesn't depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = """
import json, sys
import av, timm, torch
from safetensors import safe_open
from torchvision.transforms.v2 import functional as F
T, file = 8, safe_open(sys.argv[1], "pt")
header = json.loads(file.metadata()["frameflex"])
weights = {name.replace(".net.", "."): file.get_tensor(name) for name in file.keys()}
net = timm.create_model(header["architecture"]["backbone"], num_classes=0).eval()
net.load_state_dict({name[9:]: value for name, value in weights.items() if name.startswith("backbone.")})
def shift(_, inputs):
    x = inputs[0].unflatten(0, (-1, T)); fold = x.shape[2] // 8; moved = x.clone()
    moved[:, :, :2 * fold] = 0
    moved[:, :-1, :fold] = x[:, 1:, :fold]; moved[:, 1:, fold:2 * fold] = x[:, :-1, fold:2 * fold]
    return moved.flatten(0, 1)
for name in file.keys():
    if name.endswith(".net.weight"):
        net.get_submodule(name[9:-11]).register_forward_pre_hook(shift)
frames = [frame for frame in av.open(sys.argv[2]).decode(video=0)]
chosen = [frames[int(len(frames) / T * (i + 0.5))].to_ndarray(format="rgb24") for i in range(T)]
clip = torch.stack([torch.from_numpy(one) for one in chosen]).permute(0, 3, 1, 2)
clip = F.center_crop(F.resize(clip, 256), 224).float() / 255
clip = F.normalize(clip, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
with torch.inference_mode():
    logits = net(clip) @ weights["head.weight"].T + weights["head.bias"]
    best = logits.mean(0).softmax(0).max(0)
print(header["class_names"][best.indices], float(best.values))
"""

PARTS = """
import json, sys, time
times, before = {}, time.process_time()
def part(name):
    global before
    now = time.process_time(); times[name] = now - before; before = time.process_time()
import torch; part("import torch")
import torch._dynamo; part("torch._dynamo, for one line of torchvision")
import torchvision.transforms.v2; part("torchvision")
import timm; part("timm")
import av, rich.progress; part("PyAV, rich")
import frameflex.cli.predict, frameflex.console, frameflex.deploy.recognizer; part("frameflex")
recognizer = frameflex.load(sys.argv[1], device="cpu", precision="auto"); part("reading the checkpoint")
recognizer(sys.argv[2], num_frames=8); part("the first answer")
recognizer(sys.argv[2], num_frames=8); part("the next answer")
print(json.dumps(times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--backbones", default="resnet50,mobilenetv2_100")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    python = sys.executable
    commands = {
        "frameflex --help": [python, "-m", "frameflex", "--help"],
        "import torch": [python, "-c", "import torch"],
        "import torch, timm, torchvision": [python, "-c", "import torch, timm, torchvision"],
    }
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for backbone in args.backbones.split(","):
            given = [make(backbone, Path(folder)), str(args.clip)]
            predict = [python, "-m", "frameflex", "predict", *given, "--frames", "8", "--device", "cpu"]
            commands[f"plain script, {backbone}"] = [python, "-c", PLAIN, *given]
            commands[f"predict --precision float32, {backbone}"] = [*predict, "--precision", "float32"]
            commands[f"predict, {backbone}"] = predict
            exported = [export_of(given[0]), *given[1:]]
            commands[f"predict, ONNX export, {backbone}"] = [*predict[:4], *exported, "--frames", "8"]
            parts[backbone] = [python, "-c", PARTS, *given]
            check_same(commands[f"plain script, {backbone}"], [*predict, "--precision", "float32", "--json"])
        timed = {name: [measure(command)[:2]] for name, command in commands.items()}  # once, to warm files
        told: dict[str, list[dict[str, float]]] = {backbone: [] for backbone in parts}
        for _ in range(args.rounds):
            for name, command in commands.items():
                timed[name].append(measure(command)[:2])
            for backbone, command in parts.items():
                told[backbone].append(json.loads(measure(command)[2]))
    print(f"{'least of ' + str(args.rounds):50} {'clock':>8} {'processor':>10}")
    for name, measured in timed.items():
        clock, processor = (min(column) for column in zip(*measured[1:], strict=True))
        print(f"{name:50} {clock:7.2f}s {processor:9.2f}s")
    for backbone, rounds in told.items():
        print(f"\n{backbone}: processor seconds of one process")
        for name in rounds[0]:
            print(f"  {name:48} {min(one[name] for one in rounds):7.3f}")


def make(backbone: str, folder: Path) -> str:
    import torch

    from frameflex.checkpoint import Checkpoint, save_checkpoint
    from frameflex.data.transforms import Preprocessing
    from frameflex.models import create_model

    torch.manual_seed(0)
    model = create_model(backbone, num_classes=174)
    torch.nn.init.normal_(model.head.weight, std=0.3)  # so that one answer stands out
    names = [f"class {i}" for i in range(174)]
    save_checkpoint(folder / f"{backbone}.safetensors", Checkpoint(model, names, Preprocessing(), (8,)))
    return str(folder / f"{backbone}.safetensors")


def export_of(checkpoint: str) -> str:
    from frameflex.export import export

    folder = checkpoint.removesuffix(".safetensors")
    export(checkpoint, folder, format="onnx", frame_counts=(8,))
    return folder


def measure(command: list[str]) -> tuple[float, float, str]:
    """Seconds by the clock, of processors, and what was printed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, errors = process.communicate()
    clock = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed: {errors[-2000:]}")
    return clock, said_by_kernel(), said


_spent = [0.0]  # by all children so far


def said_by_kernel() -> float:
    """User and system seconds of the child that ended last."""
    now = sum(os.times()[2:4])
    used, _spent[0] = now - _spent[0], now
    return used


def check_same(plain: list[str], predict: list[str]) -> None:
    label, probability = measure(plain)[2].rsplit(maxsplit=1)
    best = json.loads(measure(predict)[2])["predictions"][0]
    if best["label"] != label or abs(best["probability"] - float(probability)) > 0.01:
        sys.exit(f"the plain script says {label} {probability}, predict {best}; expected the same")
    print(f"both say {label}: {float(probability):.5f} and {best['probability']:.5f}")


if __name__ == "__main__":
    main()
