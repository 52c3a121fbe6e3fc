"""One road: validation, evaluate and predict give the same logits; no number over a silently smaller set."""

import csv
import json
import shutil

import pytest
import torch
from helpers import bar_folder, tiny_recipe

from frameflex import report
from frameflex.checkpoint import CheckpointError, load_checkpoint
from frameflex.data.datasets import load_split
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import Evaluation, clip_gflops, evaluate
from frameflex.engine.separate_networks import load_networks
from frameflex.engine.training import train
from frameflex.engine.watching import Watcher
from frameflex.models import TSMResNet50
from frameflex.video import VideoError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    data = bar_folder(root / "data", per_class=4)
    seen = []
    [path] = train(
        tiny_recipe(data, root / "run", method="ffn", epochs=1),
        watcher=Watcher(on_validation=lambda epoch, measured, best: seen.append(measured)),
    )
    return data, path, seen[-1]


def measure(trained, **options):
    data, path, _ = trained
    checkpoint = load_checkpoint(path)
    return evaluate(
        checkpoint.model,
        options.pop("videos", None) or load_split(data, "validation", classes=checkpoint.class_names),
        preprocessing=checkpoint.preprocessing,
        trained_counts=checkpoint.frame_counts,
        **{"frame_counts": (2, 3, 4), **options},
    )


def test_validation_evaluate_and_predict_give_the_same_logits(trained):
    data, path, validated = trained
    measured = measure(trained, batch_size=4)
    recognizer = Recognizer.from_checkpoint(path, device="cpu")
    for count in (2, 4):
        torch.testing.assert_close(measured.logits[count], validated.logits[count], rtol=1e-4, atol=1e-5)
        for name, logits in zip(measured.names, measured.logits[count], strict=True):
            video = data / "val" / name
            torch.testing.assert_close(
                recognizer.logits(video, num_frames=count), logits, rtol=1e-4, atol=1e-5
            )
            [best, *_] = recognizer(video.read_bytes(), num_frames=count)
            assert best.index == int(logits.argmax())


def test_batches_workers_and_views_do_not_change_what_a_video_gets(trained):
    one = measure(trained, batch_size=1)
    many = measure(trained, batch_size=5, num_workers=2)
    for count in (2, 3, 4):
        torch.testing.assert_close(one.logits[count], many.logits[count], rtol=1e-4, atol=1e-5)
    views = measure(trained, views="2x3")
    assert views.logits[2].shape == one.logits[2].shape
    assert not torch.allclose(views.logits[2], one.logits[2])


def test_accuracies_equal_counting_by_hand():
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 2, 1], [5, 1, 2]])
    labels = torch.tensor([0, 1, 2, 1])
    from frameflex.engine.evaluation import accuracies

    got = accuracies(logits, labels)
    assert got["top1"] == 0.5
    assert got["top5"] == 1.0
    assert got["mean_class_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_gflops_are_multiply_adds_as_published():
    model = TSMResNet50().eval()
    with torch.no_grad():
        assert clip_gflops(model, torch.zeros(1, 3, 1, 224, 224)) == pytest.approx(4.09, abs=0.05)


def test_a_broken_file_stops_evaluation_by_name_or_is_counted(trained, tmp_path):
    data, path, _ = trained
    for folder in (data / "val").iterdir():
        for file in folder.iterdir():
            target = tmp_path / "val" / folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "val" / "going left" / "broken.mp4").write_bytes(b"nothing")
    videos = load_split(tmp_path / "val", "validation")
    with pytest.raises(VideoError, match="broken.mp4"):
        measure(trained, videos=videos)
    measured = measure(trained, videos=videos, on_bad_video="skip")
    assert [bad.name for bad in measured.bad] == ["going left/broken.mp4"]
    assert len(measured.names) == 6
    assert measured.to_dict()["protocol"]["num_undecodable"] == 1
    answers = dict(Recognizer.from_checkpoint(path).recognize_many(sorted((tmp_path / "val").rglob("*.mp4"))))
    assert isinstance(answers[tmp_path / "val" / "going left" / "broken.mp4"], VideoError)
    assert sum(isinstance(answer, list) for answer in answers.values()) == 6


def test_the_drop_is_measured_from_the_largest_trained_count():
    results = {2: 0.4, 4: 0.7, 8: 0.9, 16: 0.8}
    from frameflex.engine.evaluation import CountResult

    measured = Evaluation(
        results=[CountResult(t, top1, 1.0, top1, 0.1, 1.0) for t, top1 in results.items()],
        trained_counts=(4, 8), class_names=["a", "b"], names=[], labels=torch.empty(0), logits={}, views="1x1",
    )  # fmt: skip
    assert measured.drop(2) == pytest.approx(0.5)
    assert measured.drop(16) == pytest.approx(0.1)


def test_reports_hold_what_was_measured(trained, tmp_path):
    measured = measure(trained)
    report.write_predictions(measured, tmp_path / "predictions.csv")
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert len(rows) == 3 * 6
    at_two = [int(row["right"]) for row in rows if row["num_frames"] == "2"]
    assert sum(at_two) / len(at_two) == measured.at(2).top1
    report.write_json(tmp_path / "results.json", measured.to_dict())
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["num_videos"] == 6
    report.plot_accuracy({"ffn": measured, "again": measured}, tmp_path / "accuracy.png")
    report.plot_confusion(measured, 4, tmp_path / "confusion.png")
    for name in ("accuracy.png", "confusion.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_separate_training_that_lacks_a_count_is_refused(trained, tmp_path):
    data, _, _ = trained
    train(tiny_recipe(data, tmp_path / "both", method="separate", epochs=1))
    assert load_networks(tmp_path / "both").frame_counts == (2, 4)
    (tmp_path / "both" / "2f" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2f of its separate training has no best.safetensors"):
        load_networks(tmp_path / "both")
    shutil.rmtree(tmp_path / "both" / "2f")  # never begun: the recipe tells
    with pytest.raises(CheckpointError, match="2f of its separate training"):
        load_networks(tmp_path / "both")


def test_bad_arguments_are_refused(trained):
    data, path, _ = trained
    with pytest.raises(ValueError, match="views is '3x3'"):
        measure(trained, views="3x3")
    recognizer = Recognizer.from_checkpoint(path)
    with pytest.raises(ValueError, match="top is 0"):
        recognizer(next(data.rglob("*.mp4")), top=0)
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        recognizer("nowhere.mp4")


def test_the_confusion_matrix_equals_counting_by_hand_with_one_class_too():
    def confusion(logits, labels):
        return Evaluation(
            results=[], trained_counts=(), class_names=[], names=[], labels=torch.tensor(labels),
            logits={4: torch.tensor(logits)}, views="1x1",
        ).confusion(4).tolist()  # fmt: skip

    assert confusion([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], [0, 0, 1]) == [[1, 1], [1, 0]]
    assert confusion([[2.0], [1.0]], [0, 0]) == [[2]]
