"""What a class becomes when its video is mirrored or played backwards."""

import doctest
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_video

from frameflex.data import directions
from frameflex.data.clips import ClipDataset, Sample
from frameflex.data.directions import (
    NEVER_FLIPPED,
    NEVER_REVERSED,
    describe_directions,
    describe_reversals,
    exchange_directions,
    reverse_directions,
)
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import EvalTransform, Preprocessing, TrainTransform


def test_examples_in_the_documentation_hold():
    result = doctest.testmod(directions)
    assert result.attempted >= 4
    assert result.failed == 0


# Mirrored


def partners(*class_names: str) -> list[int]:
    return exchange_directions(class_names)


def test_something_something_directions_are_exchanged():
    names = (
        "Holding something",
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Pushing something from left to right",
        "Pushing something from right to left",
        "Putting something upright on the table",
        "Turning the camera left while filming something",
        "Turning the camera right while filming something",
        "Turning the camera upwards while filming something",
    )
    assert partners(*names) == [0, 2, 1, 4, 3, 5, 7, 6, 8]


def test_gesture_directions_are_exchanged():
    names = (
        "Swiping Left",
        "Swiping Right",
        "Swiping Down",
        "Sliding Two Fingers Left",
        "Sliding Two Fingers Right",
        "Turning Hand Clockwise",
        "Turning Hand Counterclockwise",
        "No gesture",
    )
    assert partners(*names) == [1, 0, 2, 4, 3, 6, 5, 7]
    assert partners("left", "right", "up", "down") == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [
        ("swipe_left", "swipe_right"),
        ("swipe-left", "swipe-right"),
        ("SwipeLeft", "SwipeRight"),
        ("LEFT", "Right"),
        ("left2", "right2"),
        ("01_left", "01_right"),
        ("moving leftwards", "moving rightwards"),
        ("raising the left-handed glove", "raising the right-handed glove"),
        ("turning clockwise", "turning counterclockwise"),
        ("turning clockwise", "turning anticlockwise"),
        ("turning clockwise", "turning anti-clockwise"),
        ("turning clockwise", "turning counter clockwise"),
        ("TurnClockwise", "TurnCounterClockwise"),
        ("knob cw", "knob ccw"),
        ("turning left clockwise", "turning right counterclockwise"),
    ],
)
def test_spellings_of_directions_are_recognised(name, mirrored):
    assert partners("other", name, mirrored) == [0, 2, 1]


@pytest.mark.parametrize(
    "name",
    ["eating leftovers", "copyright", "bright light", "Putting upright", "cleft", "counter", "frightened"],
)
def test_parts_of_words_are_no_directions(name):
    assert partners(name) == [0]


def test_a_class_without_its_mirrored_class_is_never_flipped():
    assert partners("Turning left", "Waving") == [NEVER_FLIPPED, 1]
    assert partners("left then right then left", "waving") == [NEVER_FLIPPED, 1]
    # ... nor one whose mirrored class is there twice
    assert partners("turn left", "turn right", "Turn Right") == [NEVER_FLIPPED] * 3
    # a different number is a different class
    assert partners("left 1", "right 2") == [NEVER_FLIPPED] * 2


def test_exchanging_twice_is_the_identity():
    names = [
        f"{verb} {side}" for verb in ("push", "pull", "turn") for side in ("left", "right", "up", "clockwise")
    ]
    exchanged = exchange_directions(names)
    for index, mirrored in enumerate(exchanged):
        assert mirrored == NEVER_FLIPPED or exchanged[mirrored] == index


def test_what_a_flip_does_is_told_to_the_reader():
    lines = describe_directions(["Swiping Left", "Swiping Right", "Turning left", "Waving", "Nothing"])
    assert lines == [
        'a horizontal flip exchanges "Swiping Left" and "Swiping Right"',
        'never flipped, its mirrored class is not in the list: "Turning left"',
        "flipped without a change of label: 2 other classes",
    ]


# Played backwards

NEVER = NEVER_REVERSED


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        ("left", "right"),
        ("swipe_up", "SwipeDown"),
        ("opening a door", "closing a door"),
        ("open", "close"),
        ("shutting the lid", "opening the lid"),
        ("ZoomIn", "ZoomOut"),
        ("moving into the room", "moving out of the room"),
        ("turning clockwise", "turning anti-clockwise"),
        ("push", "pull"),
        ("walking forwards", "walking backward"),
        ("put on jacket", "take off jacket"),
        ("putting a cup on the table", "taking a cup off of the table"),
        ("pick up cup", "put down cup"),
        ("put phone in pocket", "remove phone from pocket"),
        ("rising", "falling"),
        ("sit down", "stand up"),
        ("sit to stand", "stand to sit"),
        ("enter", "leave"),
        ("approaching the car", "moving away from the car"),
        ("moving closer to it", "moving away from it"),
        ("fold", "unfold"),
        ("attaching a lid to a jar", "detaching a lid from a jar"),
        ("cover pot with lid", "uncover pot"),
        ("tying", "untying"),
        ("turn light on", "turn light off"),
        ("raise left hand", "lower left hand"),
        ("pushing from left to right", "pulling from right to left"),
        ("from the left to the right", "from the right to the left"),
        ("01_up", "01_down"),
        ("Scroll hand towards left", "Scroll hand towards right"),
        ("person moving forward", "person moving backward"),
        ("person sitting down", "person standing up"),
        ("elevator going up", "elevator going down"),
        ("knob cw", "knob acw"),
        ("moving upwards", "moving downwards"),
        ("StandingUp", "SittingDown"),
        ("getting into a car", "getting out of a car"),
        ("pushing the box to the wall", "pulling the box from the wall"),
        ("opening the door on the right", "closing the door on the right"),
        ("lifting the left leg", "lowering the left leg"),
        ("Pushing Hand Away", "Pulling Hand In"),
        ("grabbing", "releasing"),
        ("growing", "shrinking"),
        ("tighten", "loosen"),
    ],
)
def test_opposites_in_names_are_each_others_reverse(name, reverse):
    assert reverse_directions(["other", name, reverse]) == [NEVER, 2, 1]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("pouring in", "pouring out"),
        ("throwing up", "throwing down"),
        ("pretending to open", "pretending to close"),
        ("failing to put it in", "failing to take it out"),
        ("opening without a key", "closing without a key"),
        ("thumb up", "thumb down"),
        ("facing left", "facing right"),
        ("sitting", "standing"),
        ("light on", "light off"),
        ("PushUps", "PullUps"),
        ("raise left hand", "raise right hand"),
        ("walking left", "walking right"),  # he walks backwards, which is no walk to the other side
        ("pushing from left to right", "pushing from right to left"),  # the hand would pull
        ("pushing it off of it", "pulling it onto it"),  # it falls
        ("turning it upside down", "turning it upside up"),
        ("opening a door", "closing a box"),
        ("opening 1", "closing 2"),
        ("Kreis links", "Kreis rechts"),
        ("waving", "clapping"),
        ("upright", "downright"),
        # in an order, which backwards is the same or yet another one
        ("up then down", "down then up"),
        ("up and down", "down and up"),
        ("up-down", "down-up"),
        ("opening before closing", "closing before opening"),
        # how something is
        ("closed door", "opened door"),
        ("eyes open", "eyes closed"),
        ("hat on", "hat off"),
        ("folded", "unfolded"),
        # where something is, or how it is held
        ("person left", "person right"),
        ("hand up", "hand down"),
        ("arm in", "arm out"),
        ("lever left", "lever right"),
        ("raising the left leg", "raising the right leg"),
        ("putting it in front", "taking it out front"),
        ("ball from the left", "ball from the right"),
        # backwards nobody does it like that
        ("serving left", "serving right"),
        ("car turning left", "car turning right"),
        ("a cat goes in", "a cat goes out"),
        ("person approaching", "person moving away"),
        ("writing left", "writing right"),
        ("breathing in", "breathing out"),
        ("squat up", "squat down"),
        ("plank up", "plank down"),
        ("going upstairs", "going downstairs"),
        ("letting it roll down", "letting it roll up"),
        # both end at the wall
        ("pushing it to the wall", "pulling it to the wall"),
        ("pulling it onto the table", "pushing it onto the table"),
        ("sitting up", "standing down"),
        ("get up", "get down"),
    ],
)
def test_what_does_not_show_the_other_class_backwards_is_left_alone(name, other):
    assert reverse_directions([name, other]) == [NEVER, NEVER]


def test_a_class_without_its_opposite_or_with_two_is_never_reversed():
    assert reverse_directions(["opening", "waving"]) == [NEVER, NEVER]
    assert reverse_directions(["open", "close", "Close"]) == [NEVER] * 3
    assert reverse_directions(["open", "close", "shut"]) == [NEVER] * 3
    assert reverse_directions([]) == []


def test_hostile_names_take_no_time():
    names = [" ".join(["in"] * 80), " ".join(["out"] * 80), " ".join(["into"] * 80), "a" * 5000, "", "!?"]
    assert reverse_directions(names) == [NEVER] * 6  # "in" and "into" are both what "out" becomes


def classes_of(data_set: str) -> list[str]:
    return (
        (files("frameflex.checkpoint") / "classes" / f"{data_set}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )


SOMETHING_SOMETHING = {
    ("Approaching something with your camera", "Moving away from something with your camera"),
    ("Closing something", "Opening something"),
    ("Covering something with something", "Uncovering something"),
    ("Folding something", "Unfolding something"),
    (
        "Moving something and something away from each other",
        "Moving something and something closer to each other",
    ),
    ("Moving something away from something", "Moving something closer to something"),
    ("Moving something away from the camera", "Moving something towards the camera"),
    ("Moving something down", "Moving something up"),
    ("Pulling something from left to right", "Pushing something from right to left"),
    ("Pulling something from right to left", "Pushing something from left to right"),
    ("Putting something into something", "Taking something out of something"),
    (
        "Turning the camera downwards while filming something",
        "Turning the camera upwards while filming something",
    ),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
}
JESTER = {
    ("Pulling Hand In", "Pushing Hand Away"),
    ("Pulling Two Fingers In", "Pushing Two Fingers Away"),
    ("Rolling Hand Backward", "Rolling Hand Forward"),
    ("Sliding Two Fingers Down", "Sliding Two Fingers Up"),
    ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
    ("Swiping Down", "Swiping Up"),
    ("Swiping Left", "Swiping Right"),
    ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
    ("Zooming In With Full Hand", "Zooming Out With Full Hand"),
    ("Zooming In With Two Fingers", "Zooming Out With Two Fingers"),
}
DATA_SETS = {
    "something_something_v2": SOMETHING_SOMETHING,
    "something_something_v1": SOMETHING_SOMETHING,
    "jester": JESTER,
    **{name: set() for name in ("kinetics400", "ucf101", "hmdb51", "diving48")},
}


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_the_pairs_of_published_data_sets_are_those_that_were_read_by_hand(data_set):
    names = classes_of(data_set)
    found = reverse_directions(names)
    pairs = {tuple(sorted((names[a], names[b]))) for a, b in enumerate(found) if b != NEVER}
    assert pairs == DATA_SETS[data_set]


def test_the_page_lists_the_pairs_of_published_data_sets():
    page = (Path(__file__).parents[2] / "docs/reference/reversed-videos.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if " | " in line]
    pairs = {tuple(sorted(row)) for row in rows}
    for known in (SOMETHING_SOMETHING, JESTER):
        assert known <= pairs


def test_a_table_adds_corrects_and_takes_away():
    names = ["opening", "closing", "clapping", "waving", "up", "down"]
    assert reverse_directions(names) == [1, 0, NEVER, NEVER, 5, 4]
    assert reverse_directions(names, {"clapping": "clapping"}) == [1, 0, 2, NEVER, 5, 4]
    assert reverse_directions(names, {"waving": "clapping"}) == [1, 0, 3, 2, 5, 4]
    assert reverse_directions(names, {"waving": "clapping", "clapping": "waving"}) == [1, 0, 3, 2, 5, 4]
    assert reverse_directions(names, {"closing": None}) == [NEVER, NEVER, NEVER, NEVER, 5, 4]
    # "closing" has lost its reverse to "up", and "down" its own
    assert reverse_directions(names, {"opening": "up"}) == [4, NEVER, NEVER, NEVER, 0, NEVER]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"opning": "closing"}, r'"opning" is no class; expected one of .* Did you mean "opening"\?'),
        ({"opening": "nowhere"}, r'"nowhere" is no class; expected one of "opening", "closing", "waving"\.'),
        ({"waving": "opening", "closing": "opening"}, 'the reverse of "opening" is given twice'),
        ({"waving": "opening", "opening": None}, 'the reverse of "opening" is given twice'),
    ],
)
def test_a_wrong_table_is_one_clear_error(table, message):
    with pytest.raises(ValueError, match=message):
        reverse_directions(["opening", "closing", "waving"], table)


def test_what_is_played_backwards_is_told_to_the_reader():
    assert describe_reversals(["open", "close", "clap", "pour", "wave"], {"clap": "clap"}) == [
        'playing backwards exchanges "open" and "close"',
        'played backwards without a change of label: "clap"',
        "never played backwards, no opposite is known: 2 other classes",
    ]
    assert describe_reversals(["clap", "wave"]) == [
        "nothing is played backwards: no two classes are known to be opposites"
    ]


# Clips

RAW = Preprocessing(short_side=32, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ["open", "close", "clapping", "waving"]
REVERSED = [1, 0, 2, NEVER]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> VideoList:
    """A video a class, of 20 frames; frame k is grey of brightness 4 k + 8."""
    folder = tmp_path_factory.mktemp("numbered")
    grey = (4 * np.arange(20) + 8).astype(np.uint8)
    path = write_video(folder / "video.mp4", np.tile(grey[:, None, None, None], (1, 32, 48, 3)))
    return VideoList([VideoRecord(path, label, name) for label, name in enumerate(CLASSES)], CLASSES)


def clips(videos: VideoList, reversed_labels=None, *, flip_label=None, **options) -> ClipDataset:
    transform = TrainTransform(RAW, color_jitter=0.4, flip_label=flip_label)
    options = {"frame_counts": (8, 4), "transform": transform, "training": True, **options}
    return ClipDataset(videos, reversed_labels=reversed_labels, **options)


def same_clips(sample: Sample, other: Sample) -> bool:
    return all(torch.equal(sample.clips[t], other.clips[t]) for t in sample.clips)


@pytest.mark.parametrize("sampling", ["segments", "dense"])
def test_half_of_the_clips_are_backwards_at_every_count_and_have_the_other_label(numbered, sampling):
    plain = clips(numbered, sampling=sampling, window=16)
    dataset = clips(numbered, REVERSED, sampling=sampling, window=16)
    for index, reverse in enumerate(REVERSED):
        num_backwards = 0
        for epoch in range(60):
            sample, forwards = dataset[index, epoch], plain[index, epoch]
            assert forwards.label == index
            brightness = [clip.mean(dim=(0, 2, 3)) for clip in sample.clips.values()]
            backwards = bool(brightness[0][0] > brightness[0][-1])
            for clip in brightness:
                steps = clip.diff()
                assert bool((steps <= 1e-4).all() if backwards else (steps >= -1e-4).all())
            # the same frames in the same colours, but for their order
            turned = {t: clip.flip(1) for t, clip in sample.clips.items()} if backwards else sample.clips
            assert all(torch.equal(turned[t], forwards.clips[t]) for t in turned)
            assert sample.label == (reverse if backwards else index)
            num_backwards += backwards
        assert num_backwards == 0 if reverse == NEVER else 15 < num_backwards < 45


def test_a_backward_clip_is_mirrored_as_the_class_that_it_shows(numbered):
    # "open" backwards is "close", and "close" mirrored is "waving"; "open" itself is never mirrored
    dataset = clips(numbered, [1, 0, 2, NEVER], flip_label=[NEVER_FLIPPED, 3, 2, 1])
    assert {dataset[0, epoch].label for epoch in range(60)} == {0, 1, 3}
    assert {dataset[3, epoch].label for epoch in range(60)} == {3, 1}


def test_what_is_backwards_is_a_function_of_seed_epoch_and_index_alone(numbered):
    dataset = clips(numbered, REVERSED)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = [dataset[0, epoch] for epoch in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    again = [clips(numbered, REVERSED)[0, epoch] for epoch in reversed(range(20))][::-1]
    assert all(a.label == b.label and same_clips(a, b) for a, b in zip(first, again, strict=True))
    labels = [sample.label for sample in first]
    assert labels != [dataset[1, epoch].label ^ 1 for epoch in range(20)]
    assert labels != [clips(numbered, REVERSED, seed=1)[0, epoch].label for epoch in range(20)]
    alone = [dataset[0, epoch, (4,)] for epoch in range(20)]
    assert [sample.label for sample in alone] == labels
    assert all(torch.equal(a.clips[4], b.clips[4]) for a, b in zip(first, alone, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reversed_labels": [1, 0]},
            r"reversed_labels is \[1, 0\]; expected a class index or -1 for each of 4",
        ),
        ({"reversed_labels": [1, 0, 4, 2]}, "expected a class index or -1"),
        (
            {"reversed_labels": REVERSED, "training": False, "transform": EvalTransform(RAW)},
            "reversed_labels is given in evaluation",
        ),
    ],
)
def test_wrong_labels_of_backward_clips_are_refused(numbered, options, message):
    with pytest.raises(ValueError, match=message):
        clips(numbered, **options)
