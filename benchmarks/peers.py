"""Networks for video beside each other in one run, random weights: time, arithmetic, memory, videos a second.

    python benchmarks/peers.py [--video FILE] [--runs 5] [--only NAMES]

Each peer sees the frames and pixels of its own paper, one clip a video, float32 in eager PyTorch unless its name says
otherwise. Times are taken in turn, round by round; peak memory is that of a process of its own (torch included) after
three forwards. "file to label" decodes, prepares and classifies one video after the other, by the same code for all
of them. Accuracy is not measured: weights are random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.video import mc3_18, r2plus1d_18

from frameflex import tune_process
from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.benchmark import hardware, paired_seconds, spread
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import clip_gflops
from frameflex.models import TSMResNet50, create_model
from frameflex.models.precision import fast_precision

CLASSES = 400


class AsWritten(nn.Module):
    """A network in the layout that its authors gave it, which a recognizer would change; 3D weights can't be."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, clip: Tensor) -> Tensor:
        return self.net(clip)

    def to(self, *where: Any, **how: Any) -> AsWritten:
        how.pop("memory_format", None)
        return super().to(*where, **how) if where or how else self


class PlainTSM(nn.Module):
    """TSM as its authors wrote the forward: reshape, a tensor of zeros, three slices, contiguous layout."""

    def __init__(self, num_frames: int = 8) -> None:
        super().__init__()
        self.net = create_model("resnet50", num_classes=CLASSES, shift="none")
        for block in (
            block
            for i in range(1, 5)
            for block in self.net.backbone.get_submodule(f"layer{i}")  # type: ignore[union-attr]
        ):
            block.conv1 = PlainShift(block.conv1, num_frames)

    def forward(self, clip: Tensor) -> Tensor:
        return self.net(clip)


class PlainShift(nn.Module):
    def __init__(self, net: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.net, self.num_frames = net, num_frames

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.num_frames))
        fold = x.shape[1] // 8
        out = torch.zeros_like(clips)
        out[:, :-1, :fold] = clips[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return self.net(out.flatten(0, 1))


class X3DBlock(nn.Module):
    """1 x 1 x 1, depth-wise 3 x 3 x 3, squeeze and excitation in every second block, swish, 1 x 1 x 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, excited: bool) -> None:
        super().__init__()
        inner = int(2.25 * outputs)
        self.expand = nn.Sequential(nn.Conv3d(inputs, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv3d(inner, inner, 3, (1, stride, stride), 1, groups=inner, bias=False),
            nn.BatchNorm3d(inner),
        )
        squeezed = max(8, int(inner / 16 + 4) // 8 * 8)
        self.excite = (
            nn.Sequential(
                nn.AdaptiveAvgPool3d(1),
                nn.Conv3d(inner, squeezed, 1),
                nn.ReLU(),
                nn.Conv3d(squeezed, inner, 1),
                nn.Sigmoid(),
            )
            if excited
            else None
        )
        self.reduce = nn.Sequential(nn.Conv3d(inner, outputs, 1, bias=False), nn.BatchNorm3d(outputs))
        same = inputs == outputs and stride == 1
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y if self.excite is None else y * self.excite(y)
        return functional.relu(self.reduce(functional.silu(y)) + self.skip(x))


class X3DS(nn.Module):
    """The shape of X3D-S (arXiv 2004.04730): 3, 5, 11 and 7 blocks of 24, 48, 96 and 192 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 24, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.Conv3d(24, 24, (5, 1, 1), 1, (2, 0, 0), groups=24, bias=False),
            nn.BatchNorm3d(24),
            nn.ReLU(),
        )
        blocks, inputs = [], 24
        for depth, width in ((3, 24), (5, 48), (11, 96), (7, 192)):
            for i in range(depth):
                blocks.append(X3DBlock(inputs, width, 2 if i == 0 else 1, excited=i % 2 == 0))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv3d(192, 432, 1, bias=False), nn.BatchNorm3d(432), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(432, 2048, bias=False), nn.ReLU(), nn.Linear(2048, CLASSES))

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(clip))).mean((2, 3, 4)))


class VideoMAESmall(nn.Module):
    """The shape of VideoMAE's ViT-S (arXiv 2203.12602): tubes of 2 x 16 x 16, 1568 tokens of 384, joint attention."""

    def __init__(self, num_frames: int = 16, pixels: int = 224) -> None:
        super().__init__()
        self.tubes = nn.Conv3d(3, 384, (2, 16, 16), (2, 16, 16))
        self.place = nn.Parameter(torch.randn(1, num_frames // 2 * (pixels // 16) ** 2, 384) * 0.02, False)
        self.blocks = nn.ModuleList(nn.ModuleDict(self._block()) for _ in range(12))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, CLASSES)

    @staticmethod
    def _block() -> dict[str, nn.Module]:
        mlp = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384))
        return {
            "norm1": nn.LayerNorm(384), "qkv": nn.Linear(384, 1152), "out": nn.Linear(384, 384),
            "norm2": nn.LayerNorm(384), "mlp": mlp,
        }  # fmt: skip

    def forward(self, clip: Tensor) -> Tensor:
        x = self.tubes(clip).flatten(2).transpose(1, 2) + self.place  # (B, N, 384)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).unflatten(2, (3, 6, 64)).permute(2, 0, 3, 1, 4)  # type: ignore[index]
            seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block["out"](seen)  # type: ignore[index]
            x = x + block["mlp"](block["norm2"](x))  # type: ignore[index]
        return self.head(self.norm(x.mean(1)))


@dataclass(frozen=True)
class Peer:
    """A network at its paper's frames and pixels."""

    make: Callable[[], nn.Module]
    num_frames: int
    short_side: int
    crop: int
    precision: str = "float32"


PEERS = {
    "TSM ResNet-50, plain forward": Peer(lambda: AsWritten(PlainTSM()), 8, 256, 224),
    "TSM ResNet-50, ours": Peer(lambda: TSMResNet50(CLASSES), 8, 256, 224),
    "TSM ResNet-50, ours, auto": Peer(lambda: TSMResNet50(CLASSES), 8, 256, 224, "auto"),
    "TSM MobileNetV2, ours": Peer(lambda: create_model("mobilenetv2_100", num_classes=CLASSES), 8, 256, 224),
    "TSM MobileNetV2, ours, auto": Peer(
        lambda: create_model("mobilenetv2_100", num_classes=CLASSES), 8, 256, 224, "auto"
    ),
    "R(2+1)D-18": Peer(lambda: AsWritten(r2plus1d_18(num_classes=CLASSES)), 16, 128, 112),
    "MC3-18": Peer(lambda: AsWritten(mc3_18(num_classes=CLASSES)), 16, 128, 112),
    "X3D-S's shape": Peer(lambda: AsWritten(X3DS()), 13, 182, 182),
    "VideoMAE ViT-S's shape": Peer(lambda: AsWritten(VideoMAESmall()), 16, 224, 224),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="by default one is rendered: 4 s of H.264, 428 x 240")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", help="names with these words, separated by semicolons")
    args = parser.parse_args()
    tuned = tune_process(num_threads=args.threads)
    words = args.only.split(";") if args.only else [""]
    chosen = {name: peer for name, peer in PEERS.items() if any(word in name for word in words)}
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    fast, why = fast_precision("cpu")
    print(f"{tuned.num_threads} threads, medians of {args.runs} rounds; auto is {fast}: {why}")
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or one_video(Path(folder) / "video.mp4")
        peaks = {name: peak_mib(name, tuned.num_threads) for name in chosen}
        recognizers = {name: recognizer_of(peer) for name, peer in chosen.items()}
        clips = {name: torch.randn(1, 3, p.num_frames, p.crop, p.crop) for name, p in chosen.items()}
        forwards = [
            lambda name=name: recognizers[name].probabilities(clips[name][:, None]) for name in chosen
        ]
        roads = [lambda name=name: recognizers[name](video) for name in chosen]
        times = paired_seconds([*forwards, *roads], args.runs)
        gflops = {}
        for name in chosen:
            with torch.inference_mode():
                gflops[name] = clip_gflops(recognizers[name].model, clips[name])
    print(
        "\n| | input | parameters, M | GFLOPs a clip | ms a clip | GFLOP/s | peak MiB | videos/s, file to label |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for place, (name, peer) in enumerate(chosen.items()):
        median, low, high = spread(times[place])
        parameters = sum(parameter.numel() for parameter in recognizers[name].model.parameters()) / 1e6
        print(
            f"| {name} | {peer.num_frames} x {peer.crop} | {parameters:.1f} | {gflops[name]:.1f} | "
            f"{1e3 * median:.0f} ({1e3 * low:.0f} to {1e3 * high:.0f}) | {2 * gflops[name] / median:.0f} | "
            f"{peaks[name]:.0f} | {1 / spread(times[len(chosen) + place])[0]:.2f} |"
        )


def recognizer_of(peer: Peer) -> Recognizer:
    torch.manual_seed(0)
    preprocessing = Preprocessing(short_side=peer.short_side, crop_size=peer.crop)
    names = [str(i) for i in range(CLASSES)]
    checkpoint = Checkpoint(peer.make().eval(), names, preprocessing, (peer.num_frames,))  # type: ignore[arg-type]
    return Recognizer(checkpoint, device="cpu", precision=peer.precision)


def peak_mib(name: str, num_threads: int) -> float:
    """Peak resident memory of a process that does nothing but three forwards."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, num_threads))


def _peak(name: str, num_threads: int) -> float:
    tune_process(num_threads=num_threads)
    peer = PEERS[name]
    recognizer = recognizer_of(peer)
    for _ in range(3):
        recognizer.probabilities(torch.randn(1, 1, 3, peer.num_frames, peer.crop, peer.crop))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_video(path: Path) -> Path:
    """Four seconds of H.264, 428 x 240: the size of Something-Something's videos."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 200, (30, 53, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(small).resize((428, 240), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 428, 240, "yuv420p"
        for t in range(48):
            frame = av.VideoFrame.from_ndarray(np.roll(background, 4 * t, axis=1), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


if __name__ == "__main__":
    main()
