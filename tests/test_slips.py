"""Slips of people who call frameflex from Python: each is one line that says got, expected, do this."""

import io
import os
import pathlib
import warnings

import numpy as np
import pytest
import torch
from helpers import moving_bar, write_video
from torch import nn

import frameflex
from frameflex.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.models import CausalStep
from frameflex.video import Limits

FRAMES = moving_bar(6, rightwards=True)  # uint8 (T, H, W, 3)
FEATURES = torch.zeros(8, 16, 4, 4)
CLIP = torch.zeros(1, 3, 4, 32, 32)
CONV = nn.Conv2d(16, 16, 1)


def network(**options):
    return frameflex.create_model("test_resnet", num_classes=2, **options).eval()


class Things:
    """What a user has at hand."""

    def __init__(self, root):
        self.root = root
        self.clip = str(write_video(root / "clip.mp4", FRAMES))
        self.best, self.causal = str(root / "best.safetensors"), str(root / "causal.safetensors")
        for path, options in ((self.best, {}), (self.causal, {"shift": "causal"})):
            made = Checkpoint(network(**options), ["left", "right"], Preprocessing(36, 32), (4,))
            save_checkpoint(path, made)
        self.model = network()
        self.recognizer = frameflex.load(self.best, device="cpu")
        self.reader = frameflex.open_video(self.clip)
        self.closed = frameflex.open_video(self.clip)
        self.closed.close()
        self.step = CausalStep(network(shift="causal"))
        self.state = self.step.init_state(size=32)

    def stream(self, **options):
        return StreamingRecognizer(self.causal, **{"device": "cpu", **options})

    def closed_file(self):
        with open(self.clip, "rb") as file:
            return file


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return Things(tmp_path_factory.mktemp("slips"))


WHOLE, TIMES = "expected a whole number", "expected a whole number of frames from 1 to 1024"
SLIPS = {  # what is called: the words that the line has to have
    "a recognizer": {
        "recognize_many of a path": (
            lambda it: it.recognizer.recognize_many(it.clip),
            "expected a list. For one file",
        ),
        "recognize_many of bytes": (lambda it: it.recognizer.recognize_many(b"x.mp4"), "expected a list"),
        "recognize_many of None": (
            lambda it: it.recognizer.recognize_many(None),
            "videos is None; expected a list",
        ),
        "arrays": (
            lambda it: it.recognizer.recognize_many([FRAMES]),
            r"videos\[0\] is ndarray; expected a file's",
        ),
        "a None": (
            lambda it: it.recognizer.recognize_many([it.clip, None]),
            r"videos\[1\] is None; expected a file's",
        ),
        "batch 0": (
            lambda it: it.recognizer.recognize_many([it.clip], batch_size=0),
            f"batch_size is 0; {WHOLE}",
        ),
        "batch '8'": (
            lambda it: it.recognizer.recognize_many([it.clip], batch_size="8"),
            f"batch_size is '8'; {WHOLE}",
        ),
        "workers": (
            lambda it: it.recognizer.recognize_many([it.clip], num_workers=-1),
            f"num_workers is -1; {WHOLE}",
        ),
        "frames '8'": (lambda it: it.recognizer(it.clip, num_frames="8"), f"num_frames is '8'; {TIMES}"),
        "frames 8.0": (lambda it: it.recognizer(it.clip, num_frames=8.0), f"num_frames is 8.0; {TIMES}"),
        "frames True": (lambda it: it.recognizer(it.clip, num_frames=True), f"num_frames is True; {TIMES}"),
        "frames of a tensor": (
            lambda it: it.recognizer(it.clip, num_frames=torch.tensor(True)),
            "num_frames is Tensor",
        ),
        "budget 4": (
            lambda it: it.recognizer(it.clip, budget=4),
            r"budget is 4; expected .auto., or frame counts such",
        ),
        "budget ()": (lambda it: it.recognizer(it.clip, budget=()), "budget has no frame count; expected"),
        "confidence '0.8'": (
            lambda it: it.recognizer(it.clip, confidence="0.8"),
            "confidence is '0.8'; expected a prob",
        ),
        "confidence 80": (
            lambda it: it.recognizer(it.clip, confidence=80),
            "confidence is 80; expected a probability",
        ),
        "confidence NaN": (
            lambda it: it.recognizer(it.clip, confidence=float("nan")),
            "confidence is nan; expected",
        ),
        "top '5'": (lambda it: it.recognizer(it.clip, top="5"), f"top is '5'; {WHOLE}"),
        "top 1.5": (lambda it: it.recognizer(it.clip, top=1.5), f"top is 1.5; {WHOLE}"),
        "top True": (lambda it: it.recognizer(it.clip, top=True), f"top is True; {WHOLE}"),
        "views": (lambda it: it.recognizer(it.clip, views=["1x1"]), "expected one of 1x1"),
        "a text file": (lambda it: it.recognizer(io.StringIO("x")), 'opened as text; open it with mode "rb"'),
        "an open reader": (
            lambda it: it.recognizer(it.reader),
            "open PyAVReader; expected what it was opened from",
        ),
        "sparse": (
            lambda it: it.recognizer(torch.zeros(4, 3, 32, 32).to_sparse()),
            "sparse_coo; expected an ordinary",
        ),
        "no data": (
            lambda it: it.recognizer(torch.zeros(4, 3, 32, 32, device="meta")),
            "without data; expected",
        ),
        "NaN": (lambda it: it.recognizer(np.full((4, 32, 32, 3), np.nan)), "NaN or infinite"),
        "four channels": (
            lambda it: it.recognizer(np.zeros((4, 32, 32, 4), np.uint8)),
            "no axis is of 3 colours",
        ),
        "one picture": (lambda it: it.recognizer(np.zeros((32, 32, 3), np.uint8)), "expected 4 axes"),
        "logits of several": (
            lambda it: it.recognizer.logits([it.clip] * 2),
            "a list of 2; expected one. Call logits for",
        ),
        "a path": (lambda it: frameflex.Recognizer(it.best), "expected a Checkpoint. frameflex.load makes"),
        "a model": (lambda it: frameflex.Recognizer(it.model), "checkpoint is TSM; expected a Checkpoint"),
        "from None": (
            lambda it: frameflex.Recognizer.from_checkpoint(None),
            "path is None; expected a .safetensors",
        ),
    },
    "load": {
        "None": (lambda it: frameflex.load(None), "source is None; expected a name"),
        "a model": (lambda it: frameflex.load(it.model), "source is TSM; expected a name"),
        "bytes": (lambda it: frameflex.load(os.fsencode(it.best)), "source is b.*; expected a name"),
        "nothing": (lambda it: frameflex.load(""), "source is empty; expected a name"),
        "a backbone": (lambda it: frameflex.load("resnet50"), "resnet50: no such file. It is a backbone"),
        "a folder": (lambda it: frameflex.load(it.root), "is a folder; name a file in it: best.safetensors"),
        "a video": (lambda it: frameflex.load(it.clip), "is not a complete safetensors file"),
        "a device": (
            lambda it: frameflex.load(it.best, device=[1]),
            r"device is \[1\]; expected a name, such as cpu",
        ),
        "gpu": (
            lambda it: frameflex.load(it.best, device="gpu"),
            "device is 'gpu', which can't be used here",
        ),
        "fp16": (
            lambda it: frameflex.load(it.best, precision="fp16"),
            "precision is 'fp16'; expected one of auto",
        ),
    },
    "create_model": {
        "classes '10'": (
            lambda it: frameflex.create_model("test_resnet", num_classes="10"),
            f"num_classes is '10'; {WHOLE}",
        ),
        "classes' names": (
            lambda it: frameflex.create_model("test_resnet", num_classes=["a"]),
            f"num_classes is .*{WHOLE}",
        ),
        "classes 2.0": (
            lambda it: frameflex.create_model("test_resnet", num_classes=2.0),
            f"num_classes is 2.0; {WHOLE}",
        ),
        "backbone None": (
            lambda it: frameflex.create_model(None, num_classes=2),
            "backbone is None; expected a name",
        ),
        "a class": (
            lambda it: frameflex.create_model(nn.Conv2d, num_classes=2),
            "the class Conv2d; expected a name",
        ),
        "one count": (
            lambda it: network(frame_counts=8),
            r"frame_counts is 8; expected several, such as \(4, 8\)",
        ),
        "count as text": (lambda it: network(frame_counts="4,8"), "frame_counts is '4,8'; expected several"),
        "texts": (lambda it: network(frame_counts=["4", "8"]), f"frame_counts is '4'; {TIMES}"),
        "floats": (lambda it: network(frame_counts=[4.0]), f"frame_counts is 4.0; {TIMES}"),
        "a truth value": (lambda it: network(frame_counts=[True, 4]), f"frame_counts is True; {TIMES}"),
        "too many frames": (
            lambda it: network(frame_counts=[4, 99999999]),
            f"frame_counts is 99999999; {TIMES}",
        ),
        "calibrated": (
            lambda it: network(frame_counts=(4, 8), calibrated_counts=16),
            "calibrated_counts is 16; expected",
        ),
        "dropout '0.5'": (lambda it: network(dropout="0.5"), "dropout is '0.5'; expected a probability"),
        "dropout NaN": (lambda it: network(dropout=float("nan")), "dropout is nan; expected a probability"),
        "dropout None": (lambda it: network(dropout=None), "dropout is None; expected a probability"),
        "shift_div 8.0": (lambda it: network(shift_div=8.0), f"shift_div is 8.0; {WHOLE} of at least 2"),
        "shift_every": (lambda it: network(shift_every="2"), f"shift_every is '2'; {WHOLE}"),
        "num_frames": (lambda it: network(num_frames=8), "no argument 'num_frames'; T comes from the clip"),
        "a typo": (lambda it: network(droput=0.1), "no argument 'droput'; did you mean dropout"),
        "timm's": (lambda it: network(channels=[1]), "no argument 'channels'; backbone_options takes"),
        "grey": (lambda it: network(backbone_options={"in_chans": 1}), "in_chans, which a network for RGB"),
        "options": (
            lambda it: network(backbone_options="x"),
            "backbone_options is 'x'; expected a dictionary",
        ),
        "weights of a folder": (
            lambda it: network(pretrained=it.root),
            "a folder; expected a .safetensors or .pth",
        ),
        "weights of bytes": (
            lambda it: network(pretrained=b"x"),
            "pretrained is b'x'; expected True, False, or the path",
        ),
        "weights of a video": (
            lambda it: network(pretrained=it.clip),
            "can't be read .no tensors of torch's",
        ),
        "weights of ours": (lambda it: network(pretrained=it.best), "a whole network of frameflex; expected"),
        "174 as text": (lambda it: frameflex.TSMResNet50("174"), f"num_classes is '174'; {WHOLE}"),
        "a name for classes": (
            lambda it: frameflex.TSMResNet50("resnet50"),
            f"num_classes is 'resnet50'; {WHOLE}",
        ),
    },
    "make_frame_flexible": {
        "None": (lambda it: frameflex.make_frame_flexible(None, (4, 8)), "model is None; expected a TSM"),
        "a layer": (
            lambda it: frameflex.make_frame_flexible(CONV, (4, 8)),
            "model is Conv2d; expected a TSM",
        ),
        "a recognizer": (
            lambda it: frameflex.make_frame_flexible(it.recognizer, (4, 8)),
            "Recognizer; expected a TSM",
        ),
        "one count": (
            lambda it: frameflex.make_frame_flexible(network(), 8),
            "frame_counts is 8; expected several",
        ),
    },
    "a network": {
        "uint8": (lambda it: it.model(CLIP.byte()), "clip is uint8; expected float, normalised"),
        "numpy": (lambda it: it.model(CLIP.numpy()), "clip is ndarray; expected a tensor"),
        "empty": (lambda it: it.model(CLIP[:0]), "so no clip; expected"),
        "no frame": (lambda it: it.model(CLIP[:, :, :0]), "so no frame; expected"),
        "no pixel": (lambda it: it.model(CLIP[..., :0]), "so no pixel; expected"),
        "double": (
            lambda it: it.model(CLIP.double()),
            r"clip is float64, the network's weights are float32; give clip.to",
        ),
        "half": (lambda it: it.model(CLIP.half()), r"clip is float16, .*give clip.to\(torch.float32\)"),
        "elsewhere": (
            lambda it: it.model(CLIP.to("meta")),
            "clip is on meta, the network on cpu; give clip.to",
        ),
        "time before colour": (
            lambda it: it.model(CLIP.transpose(1, 2)),
            "The colour axis comes before time",
        ),
        "colours last": (
            lambda it: it.model(torch.zeros(2, 4, 32, 32, 3)),
            "so 4 colour channels; expected RGB",
        ),
        "one clip": (lambda it: it.model(CLIP[0]), r"add a batch axis: clip\[None\]"),
        "one value a channel": (
            lambda it: network().train()(CLIP[:, :, :1]),
            "has no variance; expected more clips",
        ),
    },
    "the shift": {
        "num_frames '4'": (lambda it: frameflex.temporal_shift(FEATURES, "4"), f"num_frames is '4'; {WHOLE}"),
        "num_frames 4.0": (lambda it: frameflex.temporal_shift(FEATURES, 4.0), f"num_frames is 4.0; {WHOLE}"),
        "num_frames True": (
            lambda it: frameflex.temporal_shift(FEATURES, True),
            f"num_frames is True; {WHOLE}",
        ),
        "numpy": (
            lambda it: frameflex.temporal_shift(FEATURES.numpy(), 4),
            "features are ndarray; expected a tensor",
        ),
        "None": (lambda it: frameflex.temporal_shift(None, 4), "features are None; expected a tensor"),
        "shift_div 8.0": (
            lambda it: frameflex.temporal_shift(FEATURES, 4, 8.0),
            f"shift_div is 8.0; {WHOLE}",
        ),
        "net None": (lambda it: frameflex.TemporalShift(None), "net is None; expected a module"),
        "the count first": (lambda it: frameflex.TemporalShift(8, CONV), "net is 8; expected a module"),
        "a class": (
            lambda it: frameflex.TemporalShift(nn.Conv2d),
            "net is the class Conv2d; expected a module",
        ),
        "num_frames -4": (lambda it: frameflex.TemporalShift(CONV, -4), f"num_frames is -4; {WHOLE}"),
        "frames as text": (lambda it: frameflex.TemporalShift(CONV, "8"), f"num_frames is '8'; {WHOLE}"),
        "three axes": (lambda it: frameflex.TemporalShift(nn.Conv3d(16, 16, 1)), "net is Conv3d; expected"),
        "other channels": (
            lambda it: frameflex.TemporalShift(CONV)(torch.zeros(16, 32, 4, 4)),
            "so 32 channels; the module",
        ),
        "an array": (
            lambda it: frameflex.TemporalShift(CONV)(FEATURES.numpy()),
            "features are ndarray; expected",
        ),
    },
    "open_video": {
        "None": (lambda it: frameflex.open_video(None), "source is None; expected a path"),
        "an array": (lambda it: frameflex.open_video(FRAMES), "source is ndarray; expected a path"),
        "nothing": (lambda it: frameflex.open_video(""), "source is an empty path"),
        "an address": (
            lambda it: frameflex.open_video("http://x/y.mp4"),
            "http://x/y.mp4: .* A Recognizer takes addresses",
        ),
        "a path as bytes": (
            lambda it: frameflex.open_video(os.fsencode(it.clip)),
            r"Give os.fsdecode\(source\)",
        ),
        "text": (lambda it: frameflex.open_video(io.StringIO("x")), 'opened as text; open it with mode "rb"'),
        "a closed file": (lambda it: frameflex.open_video(it.closed_file()), "closed; open it again"),
        "a long name": (lambda it: frameflex.open_video("a" * 5000), "the name is longer than any may be"),
        "limits": (
            lambda it: frameflex.open_video(it.clip, limits={"max_frames": 3}),
            "limits is dict; expected Limits",
        ),
        "a limit": (lambda it: Limits(max_frames="3"), f"max_frames is '3'; {WHOLE}"),
        "seconds": (lambda it: Limits(max_seconds="3"), "max_seconds is '3'; expected above 0"),
        "one index": (
            lambda it: it.reader.frames(3),
            r"indices is 3; expected frame numbers, such as \[0, 8\]",
        ),
        "None as indices": (lambda it: it.reader.frames(None), "indices is None; expected frame numbers"),
        "a slice": (lambda it: it.reader.frames(slice(3)), "indices is slice; expected frame numbers"),
        "floats": (
            lambda it: it.reader.frames(torch.linspace(0, 5, 3)),
            "indices holds Tensor; expected frame numbers",
        ),
        "a float": (lambda it: it.reader.frames([1.0]), "indices holds 1.0; expected frame numbers"),
        "a mask": (
            lambda it: it.reader.frames(np.array([True] * 6)),
            "indices holds bool; expected frame numbers",
        ),
        "truth values": (lambda it: it.reader.frames([True]), "indices holds True; expected frame numbers"),
        "a closed reader": (lambda it: it.closed.frames([0]), "the reader is closed. Open the video again"),
    },
    "list_models and tune_process": {
        "a list": (lambda it: frameflex.list_models(["resnet*"]), "pattern is .*; expected text"),
        "the flag first": (lambda it: frameflex.list_models(True), "pattern is True; expected text"),
        "the pattern last": (
            lambda it: frameflex.list_models(pretrained="ssv2"),
            "pretrained is 'ssv2'; expected True",
        ),
        "text": (lambda it: frameflex.tune_process(num_workers="2"), f"num_workers is '2'; {WHOLE}"),
    },
    "a stream": {
        "None": (lambda it: it.stream().push(None), "frame is None; expected a picture"),
        "no list": (lambda it: it.stream().push_many(None), "frames is None; expected a list"),
        "a frame alone": (lambda it: it.stream().push_many(FRAMES[0]), "frames is ndarray; expected a list"),
        "a path": (
            lambda it: it.stream().push(pathlib.Path(it.clip)),
            "frame is PosixPath|frame is WindowsPath",
        ),
        "colours first": (
            lambda it: it.stream().push(FRAMES[0].transpose(2, 0, 1)),
            r"expected RGB uint8 \(H, W, 3\)",
        ),
        "floats": (lambda it: it.stream().push(FRAMES[0] / 255), "float64 .*expected RGB uint8"),
        "a time as text": (
            lambda it: it.stream().push(FRAMES[0], "1.0"),
            "timestamp is '1.0'; expected a finite",
        ),
        "a time of truth": (
            lambda it: it.stream().push(FRAMES[0], True),
            "timestamp is True; expected a finite",
        ),
        "reset": (lambda it: it.stream().reset(5), f"stream is 5; {WHOLE} from 0 to 0"),
        "reset -1": (lambda it: it.stream().reset(-1), f"stream is -1; {WHOLE} from 0 to 0"),
        "snapshot": (lambda it: it.stream().snapshot(5), f"stream is 5; {WHOLE}"),
        "restore": (
            lambda it: it.stream().restore(None),
            r"snapshot is None; expected what snapshot\(\) gave",
        ),
        "a model": (
            lambda it: StreamingRecognizer(it.model),
            "checkpoint is TSM; expected a Checkpoint, or a path",
        ),
        **{
            f"{name}={value!r}": (
                lambda it, name=name, value=value: it.stream(**{name: value}),
                f"{name} is {value!r}; expected",
            )
            for name, value in (
                ("stride", "2"),
                ("stride", True),
                ("hop", 1.5),
                ("memory", "8"),
                ("warm_up", "1"),
                ("fps", "30"),
                ("fps", float("inf")),
                ("num_streams", 1.5),
                ("interval_seconds", "0.2"),
                ("max_gap_seconds", "1"),
                ("threshold", "0.5"),
                ("release", "0.5"),
                ("min_seconds", "1"),
                ("nothing", 5),
                ("num_frames", "8"),
                ("window", "8"),
            )
        },
    },
    "a causal step": {
        "a checkpoint": (
            lambda it: CausalStep(it.recognizer.checkpoint),
            "model is Checkpoint; expected a TSM",
        ),
        "frames '8'": (
            lambda it: CausalStep(network(shift="causal"), num_frames="8"),
            f"num_frames is '8'; {TIMES}",
        ),
        "batch '1'": (lambda it: it.step.init_state(batch="1"), f"batch is '1'; {WHOLE}"),
        "size '224'": (lambda it: it.step.init_state(size="224"), f"size is '224'; {WHOLE}"),
        "three sides": (lambda it: it.step.init_state(size=(3, 32, 32)), r"expected \(height, width\)"),
        "uint8": (lambda it: it.step(it.state, CLIP[:, :, 0].byte()), "frame is uint8; expected float"),
        "numpy": (lambda it: it.step(it.state, CLIP[:, :, 0].numpy()), "frame is ndarray; expected a tensor"),
        "no state": (lambda it: it.step(None, CLIP[:, :, 0]), "state is None; expected what init_state"),
        "the other way round": (
            lambda it: it.step(CLIP[:, :, 0], it.state),
            "frame is tuple; expected a tensor",
        ),
    },
}
TOLD = [
    pytest.param(call, words, id=f"{face}: {slip}")
    for face, slips in SLIPS.items()
    for slip, (call, words) in slips.items()
]


@pytest.mark.parametrize(("call", "words"), TOLD)
def test_a_slip_is_one_line_that_says_what_was_expected(things, call, words):
    with pytest.raises(
        (ValueError, TypeError, FileNotFoundError, RuntimeError, CheckpointError), match=words
    ) as caught:
        call(things)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_memory_that_may_not_be_written_to_is_taken_without_a_warning(things):
    pipe = np.frombuffer(FRAMES.tobytes(), np.uint8).reshape(FRAMES.shape)  # as of FFmpeg's
    assert not pipe.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = things.recognizer(pipe)
        streamed = things.stream().push(pipe[0])
    assert told == things.recognizer(FRAMES)
    assert streamed.probabilities.equal(things.stream().push(FRAMES[0]).probabilities)


def test_whole_numbers_of_numpy_and_torch_are_whole_numbers(things):
    plain = things.recognizer(things.clip, num_frames=4)
    assert things.recognizer(things.clip, num_frames=np.int64(4)) == plain
    assert things.recognizer(things.clip, num_frames=torch.tensor(4)) == plain
    assert network(frame_counts=np.array([8, 4])).frame_counts == (4, 8)
    assert things.reader.frames(np.array([0, 1])).equal(things.reader.frames(torch.tensor([0, 1])))
    assert frameflex.temporal_shift(FEATURES, np.int64(4)).shape == FEATURES.shape


def test_a_closed_reader_still_knows_its_times(things):
    assert things.closed.timestamps == pytest.approx([i / 12 for i in range(6)])
