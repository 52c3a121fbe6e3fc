"""What a Recognizer takes: the same video in every form gives the same answer, and what can't be told is refused."""

import io

import numpy as np
import pytest
import torch
from helpers import moving_bar, write_video
from PIL import Image

import frameflex
from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.inputs import open_input
from frameflex.models import create_model
from frameflex.video import VideoError

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    model = create_model("test_resnet", num_classes=4).eval()
    save_checkpoint(path, Checkpoint(model, list("abcd"), Preprocessing(36, 32), (4,)))
    return frameflex.load(path, device="cpu")


def read(video):
    with open_input(video) as reader:
        return reader.frames(range(reader.num_frames)).permute(0, 2, 3, 1).numpy()


def read_only(frames):
    view = frames.view()
    view.flags.writeable = False
    return view


FORMS = {
    "numpy, colours last": FRAMES,
    "numpy, colours second": FRAMES.transpose(0, 3, 1, 2),
    "a clip, colours first": FRAMES.transpose(3, 0, 1, 2),
    "a tensor": torch.from_numpy(FRAMES),
    "floats of 0 to 1": (FRAMES / 255).astype(np.float32),
    "doubles of 0 to 1": FRAMES / 255,
    "floats of 0 to 255": FRAMES.astype(np.float32),
    "whole numbers": FRAMES.astype(np.int64),
    "a tensor of 0 to 1 with a gradient": (torch.from_numpy(FRAMES) / 255).requires_grad_(),
    "a read-only array": read_only(FRAMES),
    "an array that runs backwards": FRAMES[::-1].copy()[::-1],
    "a list of pictures": [Image.fromarray(frame) for frame in FRAMES],
    "a tuple of arrays": tuple(FRAMES),
    "a list of tensors, colours first": list(torch.from_numpy(FRAMES).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_every_form_of_a_video_is_the_same_frames(form):
    np.testing.assert_array_equal(read(FORMS[form]), FRAMES)


def test_few_frames_are_not_taken_for_colours():
    for count in (1, 2, 3, 4):
        np.testing.assert_array_equal(read(FRAMES[:count]), FRAMES[:count])
    np.testing.assert_array_equal(read(FRAMES[:4].transpose(0, 3, 1, 2)), FRAMES[:4])


NEARLY_BLACK = np.zeros_like(FRAMES)
NEARLY_BLACK[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (FRAMES[:3].transpose(0, 3, 1, 2), r"it may be \(T, 3, H, W\) or \(3, T, H, W\)"),
        (FRAMES[0], "expected 4 axes"),
        (FRAMES[None], r"list\(array\)"),
        (FRAMES[..., :1], "no axis is of 3 colours"),
        (np.concatenate([FRAMES, FRAMES[..., :1]], -1), "no axis is of 3 colours"),
        (FRAMES[:0], "no frames"),
        (FRAMES / 127.5 - 1, "normalised"),
        (FRAMES.astype(np.uint16) * 257, "more than 8 bits"),
        (np.where(FRAMES > 250, np.nan, FRAMES), "NaN"),
        (NEARLY_BLACK.astype(np.float32), "dark ones of 0 to 255, or bright ones of 0 to 1"),
        (FRAMES.astype(np.float32) / 200, "dark ones"),
        (FRAMES > 100, "dtype bool"),
        (FRAMES.astype(complex), "dtype complex128"),
        ([], "empty"),
        ([Image.fromarray(FRAMES[0]), Image.fromarray(FRAMES[1][:20])], "expected one"),
        ([Image.fromarray(FRAMES[0]).convert("RGBA")] * 2, "mode RGBA"),
        ([Image.fromarray(FRAMES[0, ..., 0].astype(np.uint16))] * 2, "mode I;16"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_give(video, words):
    if isinstance(video, list) and not video:
        from frameflex.deploy.inputs import _stacked

        with pytest.raises(ValueError, match=words):
            _stacked(video)
        return
    with pytest.raises(ValueError, match=words):
        open_input(video)


@pytest.mark.parametrize("video", [None, 3, {"frames": FRAMES}, [FRAMES[0], "a.mp4"]])
def test_what_is_no_video_is_a_clear_error(video, recognizer):
    with pytest.raises(TypeError, match="expected"):
        recognizer(video)


def test_a_picture_is_turned_as_its_camera_says():
    picture = Image.fromarray(FRAMES[0])
    picture.getexif()[0x0112] = 6  # show it turned right
    stored = io.BytesIO()
    picture.save(stored, "png", exif=picture.getexif())
    turned = read([Image.open(stored)])[0]
    np.testing.assert_array_equal(turned, np.rot90(FRAMES[0], -1))


def test_a_list_of_videos_gives_an_answer_for_each(recognizer):
    one = recognizer(FRAMES)
    assert len(one) == 4
    assert (
        recognizer([FRAMES, torch.from_numpy(FRAMES), [Image.fromarray(frame) for frame in FRAMES]])
        == [one] * 3
    )
    assert recognizer([Image.fromarray(frame) for frame in FRAMES]) == one
    assert recognizer([]) == []


def test_on_request_answers_have_the_form_of_transformers_pipeline(recognizer):
    answers = recognizer.pipeline(FRAMES, top_k=2, num_frames=3)
    expected = recognizer(FRAMES, top=2, num_frames=3)
    assert answers == [{"score": one.probability, "label": one.label} for one in expected]
    assert recognizer.pipeline([FRAMES, FRAMES], top_k=2, num_frames=3) == [answers, answers]


def test_a_name_instead_of_a_list_is_not_read_letter_by_letter(recognizer):
    with pytest.raises(ValueError, match="expected a list"):
        next(recognizer.recognize_many("clip.mp4"))


def test_a_file_is_the_same_by_path_bytes_file_object_and_address(recognizer, tmp_path, web):
    path = write_video(tmp_path / "clip.mp4", moving_bar(9, rightwards=True))
    content = path.read_bytes()
    web.files["clip.mp4"] = content
    answers = recognizer(path)
    for video in (str(path), content, bytearray(content), io.BytesIO(content), f"{web.address}clip.mp4"):
        assert recognizer(video) == answers
    assert recognizer([path, f"{web.address}clip.mp4"]) == [answers, answers]


def test_an_address_of_something_else_is_a_clear_error(recognizer, web):
    web.files["text.mp4"] = b"no video at all"

    def page(handler):
        if handler.path != "/page":
            return False
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        return True

    web.misbehave = page
    with pytest.raises(VideoError, match=r"/page: it is a web page"):
        recognizer(f"{web.address}page")
    with pytest.raises(VideoError, match=r"/gone\.mp4: it can't be downloaded .*404"):
        recognizer(f"{web.address}gone.mp4")
    with pytest.raises(VideoError, match=rf"video {web.address}text\.mp4"):
        recognizer(f"{web.address}text.mp4")


def test_an_address_that_cannot_be_reached_is_a_clear_error(recognizer):
    with pytest.raises(VideoError, match=r"http://127\.0\.0\.1:9/a\.mp4: it can't be downloaded"):
        recognizer("http://127.0.0.1:9/a.mp4")
