"""Streams against the offline network, and what happens when they break off."""

import gc
import os
import pickle
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import moving_bar, tiny_recipe, write_video
from torch import nn

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.starting import build_model
from frameflex.models import CausalStep, create_model
from frameflex.video import open_video

SIZE = 32
CLASSES = ["left", "right", "nothing"]


def causal(backbone="test_resnet", *, shift="causal", **options):
    """A model whose norms and classifier are not at their start, so that differences show."""
    torch.manual_seed(0)
    model = create_model(backbone, num_classes=len(CLASSES), shift=shift, **options).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
            elif name.startswith("head"):
                value.normal_(std=0.1)
    return model


def checkpoint_of(model, **options):
    values = {
        "class_names": CLASSES,
        "preprocessing": Preprocessing(short_side=SIZE, crop_size=SIZE),
        "frame_counts": model.frame_counts or (4,),
        **options,
    }
    return Checkpoint(model=model, **values)


def streamed(step, clips, state=None):
    state = step.init_state(len(clips), clips.shape[-2:]) if state is None else state
    logits = []
    for frame in clips.unbind(2):
        now, state = step(state, frame)
        logits.append(now)
    return torch.stack(logits, 1), state


def offline(model, clips):
    with torch.no_grad():
        return model.forward_frames(clips)


def pictures(number, *, seed=0, size=(40, 48)):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=generator))


# ------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv2_050", "repvgg_a0"]
)
def test_stream_equals_offline_from_the_first_frame_and_again_after_a_fresh_state(backbone):
    model = causal(backbone)
    step = CausalStep(model)
    for clips in torch.randn(2, 2, 3, 5, SIZE, 2 * SIZE):
        logits, _ = streamed(step, clips)
        torch.testing.assert_close(logits, offline(model, clips), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits.mean(1), model(clips).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet", "mobileone_s0"])
def test_stream_equals_offline_where_whole_blocks_are_shifted(backbone):
    model = causal(backbone, shift_place="block")
    clips = torch.randn(1, 3, 5, SIZE, SIZE)
    logits, _ = streamed(CausalStep(model), clips)
    expected = offline(model, clips)
    atol = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mobilenetv2_050"])
@pytest.mark.parametrize("untrained", ["nearest", "blend"])
def test_a_frame_flexible_stream_equals_offline_at_every_count(backbone, untrained):
    model = causal(backbone, frame_counts=(2, 4, 8), untrained=untrained)
    for count in (2, 3, 4, 6, 8):
        clips = torch.randn(2, 3, count, SIZE, SIZE)
        expected = offline(model, clips)
        logits, _ = streamed(CausalStep(model, num_frames=count), clips)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mobilenetv2_050"])
def test_convolutions_split_for_other_runtimes_give_the_same_logits(backbone):
    model = causal(backbone, frame_counts=(2, 4))
    step = CausalStep(model, num_frames=4)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    step.split_convolutions()
    clips = torch.randn(2, 3, 4, SIZE, SIZE)
    expected = offline(model, clips)
    torch.testing.assert_close(
        streamed(step, clips)[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_streams_join_and_part_in_mid_stream():
    model = causal()
    step = CausalStep(model)
    clips = torch.randn(3, 3, 6, SIZE, SIZE)
    alone = [streamed(step, clip[None, :, :3])[1] for clip in clips]
    together = tuple(torch.cat(tensors) for tensors in zip(*alone, strict=True))
    logits, state = streamed(step, clips[:, :, 3:], together)
    torch.testing.assert_close(logits, offline(model, clips)[:, 3:], rtol=1e-5, atol=1e-5)
    second = tuple(tensor[1:2] for tensor in state)
    assert streamed(step, clips[1:2], second)[0].shape == (1, 6, len(CLASSES))


def test_a_step_never_writes_to_the_state_or_the_frame_that_it_was_given():
    step = CausalStep(causal())
    _, state = streamed(step, torch.randn(2, 3, 2, SIZE, SIZE))
    frame = torch.randn(2, 3, SIZE, SIZE)
    before, same = [tensor.clone() for tensor in state], frame.clone()
    first, _ = step(state, frame)
    again, after = step(state, frame)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    assert torch.equal(frame, same)
    assert torch.equal(first, again)
    assert all(tensor.ndim == 4 for tensor in after)
    assert all(a.shape == b.shape for a, b in zip(state, after, strict=True))


def test_a_state_holds_only_its_own_channels():
    step = CausalStep(causal())
    _, state = streamed(step, torch.randn(1, 3, 1, SIZE, SIZE))
    for tensor in state:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_threads_share_one_step():
    model = causal()
    step = CausalStep(model)
    clips = torch.randn(8, 1, 3, 6, SIZE, SIZE)
    expected = [offline(model, clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for (logits, _), wanted in zip(
            pool.map(lambda clip: streamed(step, clip), clips), expected, strict=True
        ):
            torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_a_step_leaves_its_model_as_it_was():
    model = causal(frame_counts=(2, 4)).train()
    CausalStep(model).half()
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_a_state_goes_on_in_another_process(tmp_path):
    model = causal()
    save_checkpoint(tmp_path / "model.safetensors", checkpoint_of(model))
    clips = torch.randn(1, 3, 6, SIZE, SIZE)
    _, state = streamed(CausalStep(model), clips[:, :, :3])
    torch.save({"state": state, "frames": clips[:, :, 3:]}, tmp_path / "state.pt")
    program = (
        "import torch, sys; from frameflex.checkpoint import load_checkpoint; "
        "from frameflex.models import CausalStep\n"
        "folder = sys.argv[1]; saved = torch.load(folder + '/state.pt', weights_only=True)\n"
        "step = CausalStep(load_checkpoint(folder + '/model.safetensors').model)\n"
        "state, out = saved['state'], []\n"
        "for frame in saved['frames'].unbind(2):\n"
        "    logits, state = step(state, frame); out.append(logits)\n"
        "torch.save(torch.stack(out, 1), folder + '/logits.pt')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300, env=environment)
    torch.testing.assert_close(
        torch.load(tmp_path / "logits.pt"), offline(model, clips)[:, 3:], rtol=1e-5, atol=1e-5
    )


def test_wrong_frames_and_states_are_told_what_was_expected():
    step = CausalStep(causal())
    state = step.init_state(1, SIZE)
    frame = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"frame\[None\]"):
        step(state, frame[0])
    with pytest.raises(ValueError, match=r"state has 1 tensors; this network's has \d+"):
        step(state[:1], frame)
    with pytest.raises(ValueError, match="one size: make it with init_state"):
        step(state, torch.zeros(1, 3, 2 * SIZE, SIZE))
    with pytest.raises(ValueError, match="one number of streams"):
        step(state, frame.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="batch is 0"):
        step.init_state(0)
    with pytest.raises(ValueError, match="'bidirectional'.*model.shift: causal.*sliding window"):
        CausalStep(causal(shift="bidirectional"))


@pytest.mark.parametrize(("backbone", "num_bytes"), [("resnet50", 2_809_856), ("mobilenetv2_100", 108_192)])
def test_the_size_of_the_state_is_what_the_documentation_says(backbone, num_bytes):
    state = CausalStep(create_model(backbone, num_classes=3, shift="causal")).init_state(1, 224)
    assert sum(tensor.numel() * tensor.element_size() for tensor in state) == num_bytes


# --------------------------------------------------------------------------------------------- training


def test_a_bidirectional_checkpoint_is_the_start_of_a_causal_one(tmp_path):
    source = causal(shift="bidirectional")
    save_checkpoint(tmp_path / "start.safetensors", checkpoint_of(source))
    recipe = tiny_recipe(tmp_path, tmp_path, counts=(4,))
    recipe = replace(
        recipe,
        model=replace(recipe.model, backbone=None, init=str(tmp_path / "start.safetensors"), shift="causal"),
    )
    model = build_model(recipe, CLASSES)
    assert model.config["shift"] == "causal"
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_causal_checkpoint_is_saved_and_loaded(tmp_path):
    model = causal(frame_counts=(2, 4))
    save_checkpoint(tmp_path / "model.safetensors", checkpoint_of(model))
    loaded = load_checkpoint(tmp_path / "model.safetensors").model
    clip = torch.randn(1, 3, 4, SIZE, SIZE)
    torch.testing.assert_close(loaded(clip), model(clip))
    assert loaded.config["shift"] == "causal"


# ------------------------------------------------------------------------------------------- the recognizer


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("v") / "bar.mp4", moving_bar(8, rightwards=True, size=48))


def test_a_pushed_video_ends_with_the_answer_of_the_recognizer_for_the_whole_file(video):
    checkpoint = checkpoint_of(causal())
    recognizer = StreamingRecognizer(checkpoint, consensus="mean", device="cpu")
    expected = Recognizer(checkpoint, device="cpu").logits(video, num_frames=8)
    for _ in range(2):
        with open_video(video) as reader:
            predictions = [recognizer.push(frame) for frame in reader]
        torch.testing.assert_close(
            torch.stack([p.logits for p in predictions]).mean(0), expected, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(predictions[-1].probabilities, expected.softmax(-1), rtol=1e-5, atol=1e-5)
        assert [p.num_seen for p in predictions] == list(range(1, 9))
        recognizer.reset()


def test_arrays_and_tensors_of_a_frame_are_the_same_picture():
    tensor = pictures(1)[0]
    array = np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
    answers = [StreamingRecognizer(checkpoint_of(causal()), device="cpu").push(f) for f in (tensor, array)]
    torch.testing.assert_close(answers[0].logits, answers[1].logits, rtol=1e-3, atol=1e-3)


def test_stride_and_interval_say_which_frames_are_looked_at():
    checkpoint = checkpoint_of(causal())
    every_third = StreamingRecognizer(checkpoint, stride=3, fps=10, device="cpu")
    seen = [i for i, frame in enumerate(pictures(10)) if every_third.push(frame)]
    assert seen == [0, 3, 6, 9]
    # 30 frames a second, of which many are lost: still 5 a second where there are any.
    by_time = StreamingRecognizer(checkpoint, interval_seconds=0.2, device="cpu")
    arrived = [i for i in range(61) if i % 7 not in (2, 3) and not 20 < i < 26]
    seen = [i for i in arrived if by_time.push(pictures(1)[0], i / 30)]
    assert len(seen) == 11
    assert all(abs(i - 6 * n) <= 3 for n, i in enumerate(seen))


def test_dense_checkpoints_are_streamed_at_the_stride_that_they_were_trained_at():
    checkpoint = checkpoint_of(causal(), sampling={"sampling": "dense", "window": 32})
    assert StreamingRecognizer(checkpoint, device="cpu").stride == 8


@pytest.mark.parametrize("consensus", ["mean", "window", "exponential", "last"])
def test_consensus_equals_its_formula(consensus):
    recognizer = StreamingRecognizer(checkpoint_of(causal()), consensus=consensus, memory=3, device="cpu")
    logits = []
    for frame in pictures(7):
        prediction = recognizer.push(frame)
        logits.append(prediction.logits)
        weights = {
            "mean": [1.0] * len(logits),
            "window": [1.0 if i >= len(logits) - 3 else 0.0 for i in range(len(logits))],
            "exponential": [np.exp(-(len(logits) - 1 - i) / 3) for i in range(len(logits))],
            "last": [float(i == len(logits) - 1) for i in range(len(logits))],
        }[consensus]
        expected = sum(w * row for w, row in zip(weights, logits, strict=True)) / sum(weights)
        torch.testing.assert_close(
            prediction.probabilities, expected.float().softmax(-1), rtol=1e-4, atol=1e-5
        )


def starts_afresh(recognizer, prediction, frame):
    """A prediction that owes nothing to frames before it."""
    alone = StreamingRecognizer(recognizer.checkpoint, device="cpu").push(frame)
    torch.testing.assert_close(prediction.logits, alone.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction.probabilities, alone.probabilities, rtol=1e-5, atol=1e-5)
    assert prediction.num_seen == 1


def test_a_clock_that_jumps_starts_the_stream_afresh_and_says_so():
    recognizer = StreamingRecognizer(checkpoint_of(causal()), stride=2, device="cpu")
    frames = pictures(8)
    reasons = [recognizer.push(frames[i], 5 + i / 10) for i in range(5)]
    assert [p.reset for p in reasons if p] == ["start", "", ""]
    back = recognizer.push(frames[5], 1.0)
    assert back.reset == "the clock went back from 5.40 s to 1.00 s"
    starts_afresh(recognizer, back, frames[5])
    gap = recognizer.push(frames[6], 61.0)
    assert gap.reset == "no frame came for 60.00 s"
    starts_afresh(recognizer, gap, frames[6])
    assert recognizer.push(frames[7], 61.0) is None  # the same time twice is no jump


def test_a_resolution_change_starts_the_stream_afresh_and_says_so():
    recognizer = StreamingRecognizer(checkpoint_of(causal()), device="cpu")
    for frame in pictures(3):
        recognizer.push(frame)
    larger = pictures(1, size=(64, 80))[0]
    prediction = recognizer.push(larger)
    assert prediction.reset == "the picture changed from 48x40 to 80x64"
    starts_afresh(recognizer, prediction, larger)


def test_reset_makes_the_next_frame_a_first_one():
    recognizer = StreamingRecognizer(checkpoint_of(causal()), device="cpu")
    for frame in pictures(3):
        recognizer.push(frame)
    recognizer.reset()
    prediction = recognizer.push(pictures(1, seed=5)[0], 0.0)
    assert prediction.reset == "reset"
    starts_afresh(recognizer, prediction, pictures(1, seed=5)[0])


def test_what_is_no_frame_is_refused_and_changes_nothing():
    broken, whole = (StreamingRecognizer(checkpoint_of(causal()), device="cpu") for _ in range(2))
    frames = pictures(3)
    for i, frame in enumerate(frames):
        expected = whole.push(frame, i / 10)
        for bad in (
            frame.float(),
            frame[0],
            torch.zeros(3, 0, 4, dtype=torch.uint8),
            "frame",
            np.zeros((4, 4)),
        ):
            with pytest.raises(ValueError, match="frame is"):
                broken.push(bad, i / 10)
        with pytest.raises(ValueError, match="timestamp is nan"):
            broken.push(frame, float("nan"))
        assert torch.equal(broken.push(frame, i / 10).logits, expected.logits)


def test_streams_pushed_together_equal_each_alone():
    checkpoint = checkpoint_of(causal(frame_counts=(2, 4)))
    together = StreamingRecognizer(checkpoint, stride=2, num_streams=3, device="cpu")
    alone = [StreamingRecognizer(checkpoint, stride=2, device="cpu") for _ in range(3)]
    rows = [pictures(7, seed=seed) for seed in range(3)]
    for i in range(7):
        # The second stream loses frames, the third has a jump of its clock.
        frames = [None if (n, i) in ((1, 2), (1, 3)) else rows[n][i] for n in range(3)]
        stamps = [i / 10 + (50 if n == 2 and i > 4 else 0) for n in range(3)]
        for n, found in enumerate(together.push_many(frames, stamps)):
            wanted = None if frames[n] is None else alone[n].push(frames[n], stamps[n])
            assert (found is None) == (wanted is None)
            if found:
                torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
                assert (found.reset, found.num_seen, found.seconds) == (
                    wanted.reset,
                    wanted.num_seen,
                    wanted.seconds,
                )
    with pytest.raises(ValueError, match="call push_many"):
        together.push(rows[0][0])
    with pytest.raises(ValueError, match="expected 3 of each"):
        together.push_many(rows[0][:2])


@pytest.mark.parametrize("window", [None, 3])
def test_a_snapshot_goes_on_where_it_was_taken(window):
    checkpoint = checkpoint_of(causal())
    frames = pictures(6)
    first, second = (StreamingRecognizer(checkpoint, window=window, device="cpu") for _ in range(2))
    for frame in frames[:3]:
        first.push(frame)
    second.restore(pickle.loads(pickle.dumps(first.snapshot())))
    for frame in frames[3:]:
        assert torch.equal(first.push(frame).probabilities, second.push(frame).probabilities)


def test_a_bidirectional_checkpoint_names_both_remedies_and_a_window_is_the_second():
    checkpoint = checkpoint_of(causal(shift="bidirectional"))
    with pytest.raises(ValueError, match=r"model.shift: causal.*window=4 \(--window on the command line\)"):
        StreamingRecognizer(checkpoint, device="cpu")
    recognizer = StreamingRecognizer(checkpoint, window=4, hop=2, stride=1, device="cpu")
    assert recognizer.step is None
    frames = pictures(7)
    clip = EvalTransform(checkpoint.preprocessing)(torch.stack(frames))  # (1, 3, 7, h, w)
    found = [recognizer.push(frame) for frame in frames]
    assert [prediction is not None for prediction in found] == [True, False] * 3 + [True]
    for last, picked in ((0, [0, 0, 0, 0]), (2, [0, 1, 1, 2]), (4, [1, 2, 3, 4]), (6, [3, 4, 5, 6])):
        with torch.no_grad():
            expected = checkpoint.model(clip[:, :, picked])[0]
        torch.testing.assert_close(found[last].logits, expected, rtol=1e-5, atol=1e-5)


class _Scripted(nn.Module):
    """A step that says what it was told to."""

    def __init__(self, logits):
        super().__init__()
        self.logits = iter(logits)

    def forward(self, state, frame):
        return torch.tensor([next(self.logits)]), state


def scripted(logits, **options):
    options = {"consensus": "last", "fps": 10, "device": "cpu", "threshold": 0.6, "release": 0.3, **options}
    recognizer = StreamingRecognizer(checkpoint_of(causal()), **options)
    recognizer.step = _Scripted(logits)
    return recognizer


LEFT, RIGHT, NOTHING, UNSURE = [4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [0.1, 0, 0]


def test_events_start_and_end_and_nothing_is_none():
    recognizer = scripted([NOTHING, LEFT, UNSURE, LEFT, NOTHING, NOTHING, RIGHT, RIGHT])
    predictions = [recognizer.push(frame) for frame in pictures(8)]
    shown = [p.event.label if p.event else None for p in predictions]
    assert shown == [None, "left", "left", "left", None, None, "right", "right"]
    ended = [event for p in predictions for event in p.ended]
    assert [(e.label, round(e.start_seconds, 3), round(e.end_seconds, 3)) for e in ended] == [
        ("left", 0.1, 0.4)
    ]
    (last,) = recognizer.reset()
    assert (last.label, round(last.start_seconds, 3)) == ("right", 0.6)


def test_an_event_ends_where_the_stream_broke_off():
    recognizer = scripted([LEFT, LEFT, LEFT])
    for i in (0, 1):
        recognizer.push(pictures(1)[0], i / 10)
    after = recognizer.push(pictures(1)[0], 30.0)
    assert after.reset == "no frame came for 29.90 s"
    assert [(e.label, e.start_seconds, e.end_seconds) for e in after.ended] == [("left", 0.0, 0.1)]
    assert after.event.start_seconds == 30.0


def test_no_event_starts_before_the_network_is_warm():
    recognizer = scripted([LEFT] * 4, warm_up=3)
    shown = [recognizer.push(frame).event is not None for frame in pictures(4)]
    assert shown == [False, False, True, True]


def test_options_out_of_range_are_told():
    checkpoint = checkpoint_of(causal())
    for options, words in (
        ({"stride": 0}, "stride is 0"),
        ({"stride": 2, "interval_seconds": 0.1}, "expected one of them"),
        ({"window": 4, "num_frames": 4}, "expected|both window and num_frames"),
        ({"interval_seconds": 0.0}, "interval_seconds is 0.0"),
        ({"max_gap_seconds": float("nan")}, "max_gap_seconds is nan"),
        ({"consensus": "median"}, "expected one of mean, exponential, window, last"),
        ({"memory": 0}, "memory is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            StreamingRecognizer(checkpoint, device="cpu", **options)


def push_frames(recognizer, number, frames):
    for i in range(number):
        recognizer.push(frames[i % len(frames)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"consensus": "mean"}, {"window": 2})
        ),
    ],
)
def test_nothing_grows_over_two_thousand_frames(options):
    recognizer = StreamingRecognizer(checkpoint_of(causal()), stride=4, device="cpu", **options)
    frames = pictures(2, size=(SIZE, SIZE))
    push_frames(recognizer, 200, frames)
    gc.collect()
    tensors = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    tracemalloc.start()
    try:
        push_frames(recognizer, 200, frames)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        push_frames(recognizer, 1600, frames)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    gc.collect()
    assert grown < 64_000  # caches fill up; a tensor kept a frame would be three times that
    assert sum(type(thing) is torch.Tensor for thing in gc.get_objects()) <= tensors + 5


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_nothing_grows_over_a_hundred_thousand_frames():
    recognizer = StreamingRecognizer(checkpoint_of(causal()), consensus="mean", device="cpu")
    frames = pictures(2, size=(SIZE, SIZE))
    push_frames(recognizer, 5_000, frames)
    before = resident_bytes()
    push_frames(recognizer, 95_000, frames)
    assert resident_bytes() - before < 8 * 2**20
    assert recognizer.push(frames[0]).num_seen == 100_001


# ---------------------------------------------------------------------------------------------- the export


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_exported_step_equals_the_offline_model(format, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    from frameflex.export.step import export_step, open_step

    model = causal(frame_counts=(2, 4))
    manifest = export_step(
        checkpoint_of(model), tmp_path / "step", format=format, num_frames=4, batch="dynamic"
    )
    run = open_step(tmp_path / "step" / manifest["graphs"][0]["file"])
    assert manifest["class_names"] == CLASSES
    assert all(len(tensor["shape"]) == 4 for tensor in manifest["state"])
    for batch in (1, 2):
        clips = torch.randn(batch, 3, 4, SIZE, SIZE)
        state = [np.zeros((batch, *s["shape"][1:]), np.float32) for s in manifest["state"]]
        logits = []
        for frame in clips.unbind(2):
            now, *state = run(frame.contiguous().numpy(), state)
            logits.append(torch.from_numpy(now))
        torch.testing.assert_close(torch.stack(logits, 1), offline(model, clips), rtol=1e-5, atol=1e-5)


def test_an_exported_step_that_differs_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from frameflex.export import step as step_export

    real = step_export.open_step

    def forgetful(path):
        run = real(path)
        return lambda frame, state: run(frame, [np.zeros_like(tensor) for tensor in state])

    monkeypatch.setattr(step_export, "open_step", forgetful)
    with pytest.raises(step_export.ExportError, match="frame 2 of 1 streams: logits of the graph is off by"):
        step_export.export_step(checkpoint_of(causal()), tmp_path / "step")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'bidirectional'"):
        step_export.export_step(checkpoint_of(causal(shift="bidirectional")), tmp_path / "step")
    (tmp_path / "step").mkdir()
    with pytest.raises(FileExistsError, match="there already"):
        step_export.export_step(checkpoint_of(causal()), tmp_path / "step")


def test_a_step_is_exported_from_the_command_line_and_is_no_clip_export(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from frameflex.cli import main

    save_checkpoint(tmp_path / "model.safetensors", checkpoint_of(causal()))
    source, target = str(tmp_path / "model.safetensors"), tmp_path / "step"
    options = ["--format", "onnx", "--step", "--batch", "1", "--output", str(target)]
    assert main(["export", source, *options]) == 0
    assert sorted(file.name for file in target.iterdir()) == ["manifest.json", "step.onnx"]
    video = write_video(tmp_path / "bar.mp4", moving_bar(8, rightwards=True))
    assert main(["predict", str(target), str(video)]) == 1
    assert "one-frame step of a stream" in capsys.readouterr().err
    repository = str(Path(__file__).parents[3])
    example = os.path.join(repository, "examples", "stream_without_frameflex.py")
    done = subprocess.run(
        [sys.executable, example, str(target), str(video), "2"], check=True, capture_output=True, text=True
    )
    said = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    assert said == ["frame 0", "frame 2", "frame 4", "frame 6"]
