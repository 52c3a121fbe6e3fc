import doctest
from collections import Counter
from itertools import pairwise

import pytest
import torch

from frameflex.data import sampling
from frameflex.data.sampling import dense_indices, eval_indices, train_indices

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 299, 1000]
COUNTS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32, 64]
PAIRS = [(n, t) for n in LENGTHS for t in COUNTS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_examples_in_the_documentation_hold():
    result = doctest.testmod(sampling)
    assert result.attempted >= 10
    assert result.failed == 0


@pytest.mark.parametrize("pick", [eval_indices, lambda n, t: eval_indices(n, t, view=1), train_indices])
def test_indices_are_in_order_and_inside_the_video(pick):
    for n, t in PAIRS:
        picked = pick(n, t)
        assert len(picked) == t
        assert picked == sorted(picked)
        assert picked[0] >= 0
        assert picked[-1] < n


def test_eval_views_equal_the_published_protocol():
    # TSM: tick = n / t; the clip takes int(tick / 2 + tick * i), the second clip int(tick * i). Counts whose
    # tick is exact in floating point, so that the reference has no rounding of its own.
    for n in range(1, 200):
        for t in (1, 2, 4, 8, 16, 32):
            tick = n / t
            assert eval_indices(n, t) == [int(tick / 2 + tick * i) for i in range(t)]
            assert eval_indices(n, t, view=1) == [int(tick * i) for i in range(t)]


@pytest.mark.parametrize("pick", [eval_indices, lambda n, t: eval_indices(n, t, view=1), train_indices])
def test_a_short_video_shows_all_of_its_frames(pick):
    for n, t in PAIRS:
        if n <= t:
            times = Counter(pick(n, t))
            assert sorted(times) == list(range(n))
            assert max(times.values()) - min(times.values()) <= 1
    assert pick(3, 8) != [0] * 8


def test_a_video_of_exactly_t_frames_is_taken_as_it_is():
    for t in COUNTS:
        assert train_indices(t, t) == eval_indices(t, t) == eval_indices(t, t, view=1) == list(range(t))


def test_train_takes_one_frame_of_each_segment():
    for n, t in PAIRS:
        if n > t:
            for seed in range(5):
                picked = train_indices(n, t, generator(seed))
                assert len(set(picked)) == t
                # 2t times the frame's middle lies in the segment, in integers
                assert all(2 * i * n <= t * (2 * k + 1) <= 2 * (i + 1) * n for i, k in enumerate(picked))


def test_train_can_draw_every_frame_and_draws_a_segment_evenly():
    source = generator()
    times = Counter(index for _ in range(2000) for index in train_indices(40, 8, source))
    assert sorted(times) == list(range(40))
    assert all(abs(times[index] - 400) < 100 for index in range(40))  # 400 expected, standard deviation 18


def test_the_middle_frame_is_one_that_training_can_draw():
    source = generator()
    for n, t in [(5, 4), (7, 4), (9, 8), (33, 16), (50, 8)]:
        drawn = [
            set(position) for position in zip(*(train_indices(n, t, source) for _ in range(200)), strict=True)
        ]
        assert all(middle in seen for middle, seen in zip(eval_indices(n, t), drawn, strict=True))


def test_train_is_a_function_of_the_generator():
    assert train_indices(300, 8, generator(1)) == train_indices(300, 8, generator(1))
    assert train_indices(300, 8, generator(1)) != train_indices(300, 8, generator(2))


def test_train_without_a_generator_uses_the_global_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = train_indices(300, 8)
        torch.manual_seed(3)
        assert train_indices(300, 8) == first
        assert train_indices(300, 8) != first


def test_dense_keeps_its_stride_wherever_the_window_fits():
    for seed in range(50):
        picked = dense_indices(100, 8, stride=5, generator=generator(seed))
        assert {b - a for a, b in pairwise(picked)} == {5}
        assert picked[0] >= 0
        assert picked[-1] < 100


def test_dense_can_start_at_each_possible_frame():
    source = generator()
    starts = {dense_indices(12, 4, stride=3, generator=source)[0] for _ in range(100)}
    assert starts == {0, 1, 2}


def test_dense_centres_the_window():
    picked = dense_indices(101, 4, stride=8)
    assert picked[0] - 0 == 100 - picked[-1]
    assert dense_indices(25, 4, stride=8) == [0, 8, 16, 24]


def test_dense_views_move_from_start_to_end():
    starts = [dense_indices(1000, 8, stride=4, view=view, num_views=10)[0] for view in range(10)]
    gaps = {b - a for a, b in pairwise(starts)}
    assert max(gaps) - min(gaps) <= 1


def test_dense_spreads_a_video_that_is_too_short():
    for n in (1, 5, 24):
        assert dense_indices(n, 4, stride=8) == eval_indices(n, 4)
        assert dense_indices(n, 4, stride=8, generator=generator()) == eval_indices(n, 4)


@pytest.mark.parametrize("pick", [train_indices, eval_indices, lambda n, t: dense_indices(n, t, stride=1)])
@pytest.mark.parametrize(
    ("n", "t", "name"), [(0, 8, "num_available is 0"), (8, 0, "num_frames is 0"), (8, -1, "-1")]
)
def test_counts_below_one_are_refused(pick, n, t, name):
    with pytest.raises(ValueError, match=name):
        pick(n, t)


def test_unknown_views_and_strides_are_refused():
    with pytest.raises(ValueError, match="view is 2; expected 0"):
        eval_indices(8, 4, view=2)
    with pytest.raises(ValueError, match="stride is 0; expected at least 1"):
        dense_indices(8, 4, stride=0)
    with pytest.raises(ValueError, match="view is 3; expected 0 to num_views - 1 = 2"):
        dense_indices(8, 4, stride=1, view=3, num_views=3)
