"""One row a family of backbones, for docs/backbones.md: size, cost and speed on a CPU, with and without the shift.

    python benchmarks/backbones.py [--frames 8] [--size 224] [--threads 2] [--runs 5]

Networks have random weights and 174 classes, in evaluation mode, float32, one clip at a time. Each is timed in turn
with its twin without the shift, run by run, and the fastest run of each counts: what other programs take on the same
machine slows single runs, and both alike. Ratios are steadier than clips a second.
"""

import argparse
import time

import torch

from frameflex.engine.evaluation import clip_gflops
from frameflex.models import TSM, TemporalShift

ROWS = (
    ("ResNet", "resnet50"),
    ("ResNet-D", "resnet50d"),
    ("ResNeXt", "resnext50_32x4d"),
    ("SE-ResNet", "seresnet50"),
    ("MobileNetV2", "mobilenetv2_100"),
    ("MobileNetV3", "mobilenetv3_large_100"),
    ("MobileNetV4", "mobilenetv4_conv_small"),
    ("EfficientNet", "efficientnet_b0"),
    ("EfficientNet-Lite", "efficientnet_lite0"),
    ("EfficientNetV2", "tf_efficientnetv2_b0"),
    ("RegNet", "regnety_008"),
    ("ConvNeXt", "convnext_atto"),
    ("GhostNet", "ghostnet_100"),
    ("RepVGG", "repvgg_a0"),
    ("MobileOne", "mobileone_s0"),
    ("NFNet", "nf_resnet50"),
    ("MambaOut", "mambaout_femto"),
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--frames", type=int, default=8)
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--runs", type=int, default=5)
args = parser.parse_args()
torch.set_num_threads(args.threads)
clip = torch.randn(1, 3, args.frames, args.size, args.size)
print(
    "| family | architecture | shifts | M parameters | GFLOPs | clips/s | clips/s without shift | time ratio |"
)
print("|---|---|---|---|---|---|---|---|")
for family, architecture in ROWS:
    torch.manual_seed(0)
    models = [TSM(architecture, num_classes=174, shift=shift).eval() for shift in ("bidirectional", "none")]
    shifts = sum(isinstance(module, TemporalShift) for module in models[0].modules())
    parameters = sum(parameter.numel() for parameter in models[0].parameters()) / 1e6
    best = [float("inf")] * 2
    with torch.inference_mode():
        gflops = clip_gflops(models[0], clip)
        for run in range(args.runs + 1):  # the first warms up
            for i, model in enumerate(models):
                start = time.perf_counter()
                model(clip)
                if run:
                    best[i] = min(best[i], time.perf_counter() - start)
    print(
        f"| {family} | {architecture} | {shifts} | {parameters:.2f} | {gflops:.2f} | {1 / best[0]:.2f} | "
        f"{1 / best[1]:.2f} | {best[0] / best[1]:.2f} |",
        flush=True,
    )
