"""What the shift costs, for docs/experiments/speed.md: TSM over the same network without the shift, by back end.

    python benchmarks/shift.py [--only eager,train,...] [--frames 8,16] [--runs 10] [--threads 2] [--video FILE]
                               [--return-memory]

ResNet-50, 224 pixels, one clip, 174 classes, random weights, unless a line says otherwise. Freed memory is kept, as
the command line does it; --return-memory leaves that to the C library. The two networks of a
ratio run in turn, run by run; a ratio is the median over the pairs, with its quartiles. The machine should do nothing
else meanwhile.
"""

import argparse
import copy
import multiprocessing
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frameflex.allocator import keep_freed_memory
from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.benchmark import (
    BACKENDS,
    Unavailable,
    hardware,
    matrix_rate,
    paired_seconds,
    spread,
    without_shift,
)
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import clip_gflops
from frameflex.models import TSM, TemporalShift
from frameflex.models.temporal_shift import replace_module

SECTIONS = (
    *(
        "eager",
        "compile",
        "onnxruntime",
        "onnxruntime-int8",
        "openvino",
        "openvino-int8",
        "train",
        "memory",
        "predict",
    ),
    *("mobilenet", "traffic", "cuda", "cuda-compile", "cuda-train"),
)
SIZE = 224
MANY = 16  # videos at a time for predict


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--frames", default="8,16")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: its own choice)")
    parser.add_argument("--video", type=Path, help="for predict; by default one is rendered")
    parser.add_argument(
        "--return-memory", action="store_true", help="as programs do that ask for nothing else"
    )
    args = parser.parse_args()
    if not args.return_memory:
        keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    counts = [int(count) for count in args.frames.split(",")]
    for section in args.only.split(","):
        try:
            if section == "predict":
                predict(args.video, args.runs)
            elif section == "mobilenet":
                mobilenet(args.runs)
            elif section == "memory":
                for count in counts:
                    memory(count)
            elif section in ("train", "cuda-train"):
                for count in counts:
                    train(count, args.runs, "cuda" if section == "cuda-train" else "cpu")
            elif section == "traffic":
                for count in counts:
                    traffic(count)
            elif section in ("cuda", "cuda-compile"):
                for count in counts:
                    forward_on_gpu(section, count, args.runs)
            else:
                for count in counts:
                    forward(section, count, args.runs)
        except Unavailable as error:
            print(f"{section}: not measured, {error}")


def pair(backbone="resnet50"):
    torch.manual_seed(0)
    model = TSM(backbone, num_classes=174).eval()
    return model, without_shift(model)


def show(name, times, note=""):
    """Milliseconds of two calls and their ratio."""
    ours, plain = (spread([1e3 * second for second in seconds]) for seconds in times)
    ratio = spread([a / b for a, b in zip(*times, strict=True)])
    print(
        f"{name}: {ours[0]:.1f} ms ({ours[1]:.1f} to {ours[2]:.1f}), without shift {plain[0]:.1f} "
        f"({plain[1]:.1f} to {plain[2]:.1f}), ratio {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}), of the "
        f"fastest runs {min(times[0]) / min(times[1]):.3f}{note}",
        flush=True,
    )


def forward(backend, num_frames, runs):
    model, plain = pair()
    clip = torch.randn(1, 3, num_frames, SIZE, SIZE)
    run, run_plain = (BACKENDS[backend](network, clip) for network in (model, plain))
    rates = [matrix_rate()] if "int8" not in backend else []
    times = paired_seconds([lambda: run(clip), lambda: run_plain(clip)], runs)
    note = ""
    if rates:
        rates.append(matrix_rate())
        with torch.inference_mode():
            flops = 2 * clip_gflops(plain, clip)
        rate = flops / spread(times[0])[0]
        share = rate / max(rates)
        note = f", {rate:.0f} GFLOP/s = {share:.2f} of torch.mm's {max(rates):.0f}"
    show(f"{backend}, forward, T = {num_frames}", times, note)


def forward_on_gpu(backend, num_frames, runs):
    """bfloat16, for one clip and for 16, and what the GPU could do."""
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    bandwidth, matrix = gpu_rates()
    print(f"memory {bandwidth / 1e9:.0f} GB/s (copy_), bfloat16 {matrix / 1e12:.0f} TFLOP/s (torch.mm)")
    model, plain = pair()
    flops = 2e9 * clip_gflops(plain, torch.randn(1, 3, num_frames, SIZE, SIZE))
    for batch in (1, 16):
        clip = torch.randn(batch, 3, num_frames, SIZE, SIZE)
        moved = sum(Traffic.of(plain, clip).values())
        torch._dynamo.reset()
        run, run_plain = (BACKENDS[backend](network, clip) for network in (model, plain))
        times = paired_seconds([lambda: run(clip), lambda: run_plain(clip)], runs, warm_up=3)  # noqa: B023
        seconds = spread(times[0])[0]
        note = (
            f", {batch * flops / seconds / matrix:.2f} of the matrix rate, "
            f"{moved / seconds / bandwidth:.2f} of the memory's (what the network without shift moves)"
        )
        show(f"{backend}, forward, T = {num_frames}, {batch} clips", times, note)


def gpu_rates(size=8192):
    """Bytes read and written a second by a large copy, bfloat16 operations a second of a large torch.mm."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target, factor = torch.empty_like(source), torch.randn(size, size, device="cuda", dtype=torch.bfloat16)

    def seconds(call):
        (times,) = paired_seconds([lambda: (call(), torch.cuda.synchronize())], 10, warm_up=3)
        return min(times)

    copied = seconds(lambda: target.copy_(source))
    return 2 * source.nbytes / copied, 2 * size**3 / seconds(lambda: torch.mm(factor, factor))


class Traffic(TorchDispatchMode):
    """Bytes that each kind of operation reads and writes, every operand once, in eager bfloat16."""

    def __init__(self):
        super().__init__()
        self.moved = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, schema = func.overloadpacket.__name__, func._schema
        is_view = any(value.alias_info for value in schema.returns) and not schema.is_mutable
        if not is_view and not name.startswith(("empty", "new_empty")):
            read = args[1:] if name in ("copy_", "fill_", "zero_") else args
            tensors = [t for t in tree_leaves((read, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.moved[name] = self.moved.get(name, 0) + sum(t.numel() * t.element_size() for t in tensors)
        return out

    @classmethod
    def of(cls, network, clip):
        network, clip = copy.deepcopy(network).to("meta", torch.bfloat16), clip.to("meta", torch.bfloat16)
        with torch.no_grad(), cls() as counted:
            network(clip)
        return counted.moved


def traffic(num_frames):
    """What the network moves through memory by arithmetic, and what the shift's copy adds."""
    ours, plain = (Traffic.of(n, torch.empty(1, 3, num_frames, SIZE, SIZE)) for n in pair())
    listed = ", ".join(f"{name} {moved / 1e6:.1f}" for name, moved in plain.items() if moved >= 1e6)
    extra = {name: moved - plain.get(name, 0) for name, moved in ours.items() if moved != plain.get(name, 0)}
    print(
        f"traffic in bfloat16, T = {num_frames}, MB: {sum(plain.values()) / 1e6:.1f} without shift ({listed}); the "
        f"copy adds {sum(extra.values()) / 1e6:.1f} "
        f"({', '.join(f'{name} {moved / 1e6:.1f}' for name, moved in extra.items())})"
    )


def train(num_frames, runs, device):
    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    clips = 8 if device == "cuda" else 1
    clip = torch.randn(clips, 3, num_frames, SIZE, SIZE, device=device)
    ours, plain, naive = (
        network.train().to(device).to(memory_format=torch.channels_last)
        for network in (*pair(), with_naive_shift(pair()[0]))
    )

    def step(network):
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss = F.cross_entropy(network(clip), torch.zeros(clips, dtype=torch.long, device=device))
        loss.backward()
        network.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    calls = [lambda: step(ours), lambda: step(plain), lambda: step(naive)]
    times = paired_seconds(calls, runs, warm_up=3 if device == "cuda" else 1)
    show(f"{device}, training step, T = {num_frames}, {clips} clips", times[:2])
    show(f"  the same with the shift written naively, T = {num_frames}", [times[2], times[1]])


def memory(num_frames):
    """Bytes that the forward pass keeps for the backward pass, weights left out, each storage once."""
    clip = torch.randn(1, 3, num_frames, SIZE, SIZE)

    def kept(network):
        network.train().to(memory_format=torch.channels_last)
        own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        storages, tensors = {}, []

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
                tensors.append(tensor.detach())  # so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(clip).sum()
        del loss
        return sum(storages.values())

    ours, plain, naive = (kept(n) for n in (*pair(), with_naive_shift(pair()[0])))
    print(
        f"memory kept for the backward pass, T = {num_frames}: {ours / 2**20:.1f} MiB, without shift "
        f"{plain / 2**20:.1f} MiB, extra {ours / plain - 1:.2%}; with the shift written naively "
        f"{naive / plain - 1:.2%}"
    )


class NaiveShift(nn.Module):
    """The shift as it is usually written: zeros, three slices, a copy that the convolution keeps."""

    def __init__(self, shift):
        super().__init__()
        self.net, self.shift_div, self.num_frames = shift.net, shift.shift_div, 8

    def at_num_frames(self, num_frames):
        view = copy.copy(self)
        view.num_frames = num_frames
        return view

    def forward(self, x):
        clips = x.unflatten(0, (-1, self.num_frames))
        fold = x.shape[1] // self.shift_div
        out = torch.zeros_like(clips)
        out[:, :-1, :fold] = clips[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return self.net(out.flatten(0, 1))


def with_naive_shift(model):
    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, TemporalShift):
            replace_module(model.backbone, name, NaiveShift(module))
    return model


def predict(video, runs):
    """From files to labels at T = 8: a straightforward pipeline, and ours on the back ends that can run it."""
    from frameflex.data.records import VideoList, VideoRecord
    from frameflex.export import export

    model = pair()[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        video = video or render(folder / "video.mp4")
        checkpoint = Checkpoint(model, [str(i) for i in range(174)], Preprocessing(), (8,))
        videos = VideoList([VideoRecord(video, None, video.name)] * 4, checkpoint.class_names)
        recognizers = {"eager": Recognizer(checkpoint)}
        for name, calibration in (("openvino", None), ("openvino-int8", videos)):
            export(
                checkpoint,
                folder / name,
                format="openvino",
                batch=1,
                int8_videos=calibration,
                min_agreement=0,
            )
            recognizers[name] = Recognizer.from_checkpoint(folder / name)
        # In a process of its own, whose C library does what it does for programs that ask for nothing.
        apart = multiprocessing.get_context("spawn").Pool(1, prepare_straightforward, (str(video),))
        roads = {"straightforward": lambda: apart.apply(go_straightforward, (MANY,))}
        for name, recognizer in recognizers.items():
            roads[f"{name}, one by one"] = lambda r=recognizer: [r(video, num_frames=8) for _ in range(MANY)]
            roads[f"{name}, many"] = lambda r=recognizer: list(r.recognize_many([video] * MANY, num_frames=8))
        with apart:
            times = dict(zip(roads, paired_seconds(list(roads.values()), runs), strict=True))
    for name in roads:
        seconds = spread([total / MANY for total in times[name]])
        faster = spread([a / b for a, b in zip(times["straightforward"], times[name], strict=True)])
        print(
            f"predict, T = 8, {name}: {1e3 * seconds[0]:.1f} ms a video ({1e3 * seconds[1]:.1f} to "
            f"{1e3 * seconds[2]:.1f}), {1 / seconds[0]:.2f} clips/s, {faster[0]:.2f} x straightforward "
            f"({faster[1]:.2f} to {faster[2]:.2f})",
            flush=True,
        )


def prepare_straightforward(video):
    global one_video
    one_video = straightforward(with_naive_shift(pair()[0]), video)


def go_straightforward(times):
    for _ in range(times):
        one_video()


def straightforward(model, video):
    """PyAV for all frames, Pillow for each of them, the naive shift, contiguous layout, eager."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (Preprocessing().mean, Preprocessing().std))

    def run():
        with av.open(str(video)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        picked = [frames[int((i + 0.5) * len(frames) / 8)] for i in range(8)]
        tensors = []
        for image in picked:
            scale = 256 / min(image.size)
            image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
            left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
            pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
            tensors.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - mean) / std)
        with torch.no_grad():
            return model(torch.stack(tensors, 1)[None]).argmax()

    return run


def render(path):
    """Four seconds of H.264, 427 x 240: the size of Something-Something's videos."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 200, (30, 53, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(background).resize((428, 240), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 428, 240, "yuv420p"
        for t in range(48):
            pixels = np.roll(background, 4 * t, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def mobilenet(runs):
    model, plain = pair("mobilenetv2_100")
    clip = torch.randn(1, 3, 8, SIZE, SIZE)
    run, run_plain = (BACKENDS["openvino"](network, clip) for network in (model, plain))
    times = paired_seconds([lambda: run(clip), lambda: run_plain(clip)], max(runs, 20), warm_up=3)
    show("MobileNetV2, openvino, forward, T = 8", times)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
