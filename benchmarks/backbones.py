"""One row a family of backbones, for docs/reference/backbones.md: size, cost speed on a CPU with and without shift.

    python benchmarks/backbones.py [--frames 8] [--size 224] [--threads 2] [--runs 5]

Networks have random weights and 174 classes, in evaluation mode, float32, one clip at a time. Each is timed in turn
with its twin without the shift, run by run, and the fastest run of each counts: what other programs take on the same
machine slows single runs, and both alike. The ratio is of processor time on one thread, in which waiting for others
doesn't count.
"""

import argparse
import time

import torch

from frameflex.engine.evaluation import clip_gflops
from frameflex.models import TSM, TemporalShift

# Family, a member, where the shift sits, and what its arithmetic was compared with (tests/test_convert.py).
ROWS = (
    ("ResNet", "resnet50", "before `conv1` of every block", "published logits, 9e-7"),
    ("ResNet-D", "resnet50d", "before `conv1` of every block", "tests of the family"),
    ("ResNeXt", "resnext50_32x4d", "before `conv1` of every block", "torchvision, 9e-7 (images)"),
    ("SE-ResNet", "seresnet50", "before `conv1` of every block", "tests of the family"),
    (
        "MobileNetV2",
        "mobilenetv2_100",
        "before `conv_pw` of the blocks with a skip, as published",
        "network written out in the tests, below 1e-4",
    ),
    (
        "MobileNetV3",
        "mobilenetv3_large_100",
        "before the first convolution of the blocks with a skip",
        "torchvision, 2e-7 (images)",
    ),
    (
        "MobileNetV4",
        "mobilenetv4_conv_small",
        "before `dw_start` or `pw_exp` of the blocks with a skip",
        "tests of the family",
    ),
    (
        "EfficientNet",
        "efficientnet_b0",
        "before `conv_pw` (or `conv_dw`) of the blocks with a skip",
        "torchvision, 6e-8 (images)",
    ),
    (
        "EfficientNet-Lite",
        "efficientnet_lite0",
        "before `conv_pw` (or `conv_dw`) of the blocks with a skip",
        "timm (images)",
    ),
    (
        "EfficientNetV2",
        "tf_efficientnetv2_b0",
        "before `conv_exp` or `conv_pw` of the blocks with a skip",
        "torchvision, 1.5e-7 (images)",
    ),
    ("RegNet", "regnety_008", "before `conv1` of every block", "torchvision, 5e-7 (images)"),
    (
        "ConvNeXt",
        "convnext_atto",
        "before the depthwise convolution of every block",
        "torchvision, 0 (images)",
    ),
    ("GhostNet", "ghostnet_100", "before the first ghost module of every block", "timm (images)"),
    ("RepVGG", "repvgg_a0", "before the k x k branch of the blocks with an identity", "tests of the family"),
    (
        "MobileOne",
        "mobileone_s0",
        "before each k x k branch of the blocks with an identity",
        "tests of the family",
    ),
    ("NFNet", "nf_resnet50", "before `conv1` of every block", "tests of the family"),
    ("MambaOut", "mambaout_femto", "before the depthwise convolution of every block", "tests of the family"),
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--frames", type=int, default=8)
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--runs", type=int, default=5)
args = parser.parse_args()
clip = torch.randn(1, 3, args.frames, args.size, args.size)
print("| family | architecture | M parameters | GFLOPs | clips/s | time ratio | shifts | parity |")
print("|---|---|---|---|---|---|---|---|")
for family, architecture, placed, parity in ROWS:
    torch.manual_seed(0)
    models = [TSM(architecture, num_classes=174, shift=shift).eval() for shift in ("bidirectional", "none")]
    shifts = sum(isinstance(module, TemporalShift) for module in models[0].modules())
    parameters = sum(parameter.numel() for parameter in models[0].parameters()) / 1e6
    best, busy = [float("inf")] * 2, [float("inf")] * 2
    with torch.inference_mode():
        gflops = clip_gflops(models[0], clip)
        for run in range(args.runs + 1):  # the first warms up
            for i, model in enumerate(models):
                torch.set_num_threads(args.threads)
                start = time.perf_counter()
                model(clip)
                seconds = time.perf_counter() - start
                torch.set_num_threads(1)
                start = time.process_time()
                model(clip)
                if run:
                    best[i] = min(best[i], seconds)
                    busy[i] = min(busy[i], time.process_time() - start)
    print(
        f"| {family} | {architecture} | {parameters:.2f} | {gflops:.2f} | {1 / best[0]:.2f} | "
        f"{busy[0] / busy[1]:.2f} | {shifts}, {placed} | {parity} |",
        flush=True,
    )
