"""What each way to write the temporal shift costs in an exported graph, next to the same network without shift.

ResNet-50, 224 pixels, one clip. Every form is checked against the model, then all graphs of a back end run in turn,
round by round; the ratio is the median over rounds of a form's time to the 2D network's in the same round. Run it
alone on the machine: the forms differ by some percent.

    python benchmarks/export_forms.py --runtime openvino --frames 8
    python benchmarks/export_forms.py --runtime onnxruntime --frames 8
    python benchmarks/export_forms.py --runtime openvino --int8
    python benchmarks/export_forms.py --runtime openvino --int8 --profile --forms "export,5-D depth-wise"

Where others share the machine, --processor-time measures one thread by the time that it ran.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from frameflex.export.network import FlatShift, export_network
from frameflex.export.packages import openvino_core
from frameflex.models import TSMResNet50
from frameflex.models.temporal_shift import replace_module


class Form(nn.Module):
    """One way to write ``conv(shift(x))`` for one clip, whose frames are the batch."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.fold = conv.in_channels // 8
        self.rest = conv.in_channels - 2 * self.fold

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class NoShift(Form):
    """The 2D network."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Reshaped(Form):
    """As the formula reads: 5-D, slices of it, concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        f, clip = self.fold, x[None]  # (1, T, C, H, W)
        none = torch.zeros_like(clip[:, :1])
        ahead = torch.cat([clip[:, 1:, :f], none[:, :, :f]], 1)
        behind = torch.cat([none[:, :, f : 2 * f], clip[:, :-1, f : 2 * f]], 1)
        return self.conv(torch.cat([ahead, behind, clip[:, :, 2 * f :]], 2).flatten(0, 1))


class Concatenated(Form):
    """Slices of whole frames, concatenated with a frame of zeros, then with the channels that stay."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.fold
        none = torch.zeros_like(x[:1, :f])
        ahead, behind = torch.cat([x[1:, :f], none]), torch.cat([none, x[:-1, f : 2 * f]])
        return self.conv(torch.cat([ahead, behind, x[:, 2 * f :]], 1))


class Padded(Form):
    """Slices of whole frames, padded with zeros, then concatenated with the channels that stay."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.fold
        ahead = functional.pad(x[1:, :f], (0, 0, 0, 0, 0, 0, 0, 1))
        behind = functional.pad(x[:-1, f : 2 * f], (0, 0, 0, 0, 0, 0, 1, 0))
        return self.conv(torch.cat([ahead, behind, x[:, 2 * f :]], 1))


def moved(x: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """Both moved parts, each by one padding, negative where it cuts."""
    rest = x.shape[1] - f
    ahead = functional.pad(x, (0, 0, 0, 0, 0, -rest, -1, 1))
    return ahead, functional.pad(x, (0, 0, 0, 0, -f, f - rest, 1, -1))


class Cut(Form):
    """Each moved part by one padding that also cuts."""

    def forward(self, x: Tensor) -> Tensor:
        ahead, behind = moved(x, self.fold)
        return self.conv(torch.cat([ahead, behind, x[:, 2 * self.fold :]], 1))


class CutAll(Form):
    """As `Cut`, the channels that stay by a padding too: they are then quantised once, not three times."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(
            torch.cat([*moved(x, self.fold), functional.pad(x, (0, 0, 0, 0, -2 * self.fold, 0))], 1)
        )


class Split(Form):
    """One split of the channels, then paddings of the parts that move."""

    def forward(self, x: Tensor) -> Tensor:
        ahead, behind, stay = x.split([self.fold, self.fold, self.rest], 1)
        ahead = functional.pad(ahead, (0, 0, 0, 0, 0, 0, -1, 1))
        return self.conv(torch.cat([ahead, functional.pad(behind, (0, 0, 0, 0, 0, 0, 1, -1)), stay], 1))


class AbsorbedInput(Form):
    """Two convolutions, of the channels that stay and of those that move, and their sum."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.stay, self.move = part(conv, 2 * self.fold, conv.in_channels), part(conv, 0, 2 * self.fold)
        self.stay.bias = conv.bias
        del self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.stay(x[:, 2 * self.fold :]) + self.move(torch.cat(moved(x, self.fold), 1))


class AbsorbedOutput(Form):
    """Three convolutions; two of their results move by a frame."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        f = self.fold
        self.stay, self.ahead, self.behind = (
            part(conv, 2 * f, conv.in_channels),
            part(conv, 0, f),
            part(conv, f, 2 * f),
        )
        self.stay.bias = conv.bias
        del self.conv

    def forward(self, x: Tensor) -> Tensor:
        f = self.fold
        ahead, behind = self.ahead(x[:, :f]), self.behind(x[:, f : 2 * f])
        ahead = functional.pad(ahead, (0, 0, 0, 0, 0, 0, -1, 1))
        return self.stay(x[:, 2 * f :]) + ahead + functional.pad(behind, (0, 0, 0, 0, 0, 0, 1, -1))


class In3D(nn.Module):
    """One clip as one 3D tensor, T as depth, where a slice of the depth is contiguous; convolutions of 1 x k x k."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.fold, self.conv = conv.in_channels // 8, in_3d(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DepthwiseIn3D(In3D):
    """The shift as one depth-wise convolution of three taps, each channel's weights zeros and a one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        channels = conv.in_channels
        self.shift = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        taps = torch.zeros(channels, 1, 3, 1, 1)
        taps[: self.fold, 0, 2] = taps[self.fold : 2 * self.fold, 0, 0] = taps[2 * self.fold :, 0, 1] = 1
        self.shift.weight = nn.Parameter(taps, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.shift(x))


class SplitIn3D(In3D):
    """One split of the channels, paddings of the depth of those that move."""

    def forward(self, x: Tensor) -> Tensor:
        ahead, behind, stay = x.split([self.fold, self.fold, x.shape[1] - 2 * self.fold], 1)
        ahead = functional.pad(ahead, (0, 0, 0, 0, -1, 1))
        return self.conv(torch.cat([ahead, functional.pad(behind, (0, 0, 0, 0, 1, -1)), stay], 1))


def in_3d(conv: nn.Conv2d) -> nn.Conv3d:
    made = nn.Conv3d(
        conv.in_channels, conv.out_channels, (1, *conv.kernel_size), (1, *conv.stride), (0, *conv.padding),
        groups=conv.groups, bias=conv.bias is not None,
    )  # fmt: skip
    made.weight = nn.Parameter(conv.weight.detach()[:, :, None].clone(), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
    return made


class NetworkIn3D(nn.Module):
    """A traced network of one clip, rewritten so that its frames are the depth of one tensor."""

    def __init__(self, traced: nn.Module, form: type[In3D]) -> None:
        super().__init__()
        self.backbone, self.head = traced.backbone, traced.head
        for name, module in list(self.backbone.named_modules()):
            if isinstance(module, FlatShift):
                replace_module(self.backbone, name, form(module.net))
        for name, module in list(self.backbone.named_modules()):
            if type(module) is nn.Conv2d:
                replace_module(self.backbone, name, in_3d(module))
            elif isinstance(module, nn.MaxPool2d):
                replace_module(self.backbone, name, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.backbone.global_pool = MeanIn3D()

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.backbone(clip))


class MeanIn3D(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


def part(conv: nn.Conv2d, first: int, last: int) -> nn.Conv2d:
    """A 1 x 1 convolution with some of the input channels of another."""
    own = nn.Conv2d(last - first, conv.out_channels, 1, stride=conv.stride, bias=False)
    own.weight = nn.Parameter(conv.weight.detach()[:, first:last].clone(), requires_grad=False)
    return own


FORMS: dict[str, Callable[[nn.Conv2d], Form]] = {
    "2D network": NoShift,
    "reshaped": Reshaped,
    "concatenated": Concatenated,
    "padded": Padded,
    "cut": Cut,
    "cut all": CutAll,
    "split": Split,
    "absorbed, input": AbsorbedInput,
    "absorbed, output": AbsorbedOutput,
}
FORMS_IN_3D = {"5-D network": In3D, "5-D depth-wise": DepthwiseIn3D, "5-D split": SplitIn3D}


def network(
    model: TSMResNet50, form: str, num_frames: int, batch: int | str, *, divide: bool, quantised: bool
) -> nn.Module:
    """The network for export with its shifts written in one form; "export" is what `frameflex export` writes."""
    traced = export_network(
        model, num_frames, batch=batch, cut=True, divide=divide and form == "export", quantised=quantised
    )
    if form in FORMS_IN_3D:
        return NetworkIn3D(traced, FORMS_IN_3D[form]).eval()
    if form != "export":
        for name, shift in list(traced.named_modules()):
            if isinstance(shift, FlatShift):
                parent, _, last = name.rpartition(".")
                setattr(traced.get_submodule(parent), last, FORMS[form](shift.net).eval())
    return traced


def write(traced: nn.Module, clip: Tensor, path: Path, *, runtime: str, int8: bool) -> Path:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if runtime == "onnxruntime":
            path = path.with_suffix(".onnx")
            torch.onnx.export(
                traced, (clip,), path, input_names=["clip"], dynamo=True, external_data=False, verbose=False
            )
            if int8:
                path = quantize_onnx(path, clip)
            return path
        import openvino

        path = path.with_suffix(".xml")
        model = openvino.convert_model(
            traced, example_input=clip, input=[openvino.PartialShape(list(clip.shape))]
        )
        if int8:
            import nncf

            model = nncf.quantize(model, nncf.Dataset([clip.numpy()]), subset_size=1)
        openvino.save_model(model, path, compress_to_fp16=False)
        return path


def quantize_onnx(path: Path, clip: Tensor) -> Path:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.clips = iter([{"clip": clip.numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.clips, None)

    quantized = path.with_suffix(".int8.onnx")
    quantization.quantize_static(
        path,
        quantized,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return quantized


def runner(path: Path, runtime: str, num_threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """What runs a graph, on as many threads as the runtime likes or on a number of them."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda clip: session.run(None, {"clip": clip})[0]

    options = {"INFERENCE_PRECISION_HINT": "f32"} | (
        {"INFERENCE_NUM_THREADS": num_threads} if num_threads else {}
    )
    request = openvino_core().compile_model(str(path), "CPU", options).create_infer_request()
    return lambda clip: request.infer([clip])[0]


def profile(paths: dict[str, Path], clip: np.ndarray, rounds: int) -> None:
    """Where OpenVINO's milliseconds go: each operation's fastest time, added up by its kind and implementation."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    requests = {
        name: openvino_core().compile_model(str(path), "CPU", options).create_infer_request()
        for name, path in paths.items()
    }
    fastest: dict[str, dict[tuple[str, str, str], float]] = {name: {} for name in paths}
    for _ in range(rounds):
        for name, request in requests.items():
            request.infer([clip])
            for found in request.profiling_info:
                key = (found.node_type, found.exec_type, found.node_name)
                taken = 1e3 * found.real_time.total_seconds()
                if taken:
                    fastest[name][key] = min(fastest[name].get(key, taken), taken)
    for name, times in fastest.items():
        print(f"{name}: {sum(times.values()):.1f} ms in all")
        kinds: dict[tuple[str, str], list[float]] = {}
        for (kind, implementation, _), taken in times.items():
            kinds.setdefault((kind, implementation), []).append(taken)
        for (kind, implementation), taken in sorted(kinds.items(), key=lambda item: -sum(item[1]))[:8]:
            print(f"  {sum(taken):7.2f} ms  {len(taken):3} x {kind}, {implementation}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runtime", choices=["openvino", "onnxruntime"], required=True)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument(
        "--forms", default=",".join([*list(FORMS)[1:], "export"]), help="names, separated by commas"
    )
    parser.add_argument("--batch", default="1", help='of the form "export": 1 or dynamic')
    parser.add_argument(
        "--processor-time", action="store_true", help="one thread, by the time that the process ran"
    )
    parser.add_argument("--profile", action="store_true", help="of OpenVINO, operation by operation")
    parser.add_argument("--output", type=Path, help="a JSON file of the times in seconds")
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter
    torch.manual_seed(0)
    model = TSMResNet50(174).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    clip = torch.randn(1, 3, args.frames, 224, 224)
    with torch.no_grad():
        expected = model(clip).numpy()
    names = [
        "2D network",
        *[name.strip() for name in args.forms.replace("absorbed, ", "absorbed~").split(",")],
    ]
    names = [name.replace("absorbed~", "absorbed, ") for name in names]
    with tempfile.TemporaryDirectory() as folder:
        runs, paths = {}, {}
        for index, name in enumerate(names):
            batch = args.batch if args.batch == "dynamic" and name == "export" else 1
            traced = network(
                model,
                name,
                args.frames,
                batch,
                divide=not args.int8,
                quantised=args.int8,
            )
            path = write(traced, clip, Path(folder) / str(index), runtime=args.runtime, int8=args.int8)
            paths[name] = path
            runs[name] = runner(path, args.runtime, 1 if args.processor_time else 0)
            difference = np.abs(runs[name](clip.numpy()) - expected).max() / np.abs(expected).max()
            unshifted = name in ("2D network", "5-D network")
            assert unshifted or args.int8 or difference < 1e-4, (name, difference)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                start = clock()
                runs[name](clip.numpy())
                seconds[name].append(clock() - start)
        if args.profile:
            profile(paths, clip.numpy(), args.rounds)
    precision = "int8" if args.int8 else "float32"
    print(
        f"{args.runtime} {precision}, T = {args.frames}, {torch.get_num_threads()} threads, {args.rounds} rounds"
    )
    for name in names:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds["2D network"], strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        median = 1000 * statistics.median(seconds[name])
        fastest = min(seconds[name]) / min(seconds["2D network"])
        print(
            f"{name:20} {median:8.1f} ms   ratio {middle:.3f} ({low:.3f} to {high:.3f}), of the fastest {fastest:.3f}"
        )
    if args.output:
        args.output.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
