"""`report.html`: one file that needs nothing else, in which names are only names."""

import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.records import BadVideo, VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.engine.evaluation import CountResult, Evaluation
from frameflex.models import create_model
from frameflex.report import Measured, top1_sentence, wilson_interval, write_report
from frameflex.report.html import doubtful_labels, worst_mistakes

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


class Tags(HTMLParser):
    """Every tag with its attributes, and that each one that opens closes."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def part(folder, *, num_classes=3, names=None, log=None):
    """Four videos a class, of which the first is taken for the class after it."""
    classes = names or [f"class {i}" for i in range(num_classes)]
    frames = moving_bar(10, rightwards=True, size=64)
    records = [
        VideoRecord(write_video(folder / f"{k}-{i}.mp4", frames), k, f"{classes[k]}/{i}.mp4")
        for k in range(num_classes)
        for i in range(4)
    ]
    labels = torch.tensor([record.label for record in records])
    guesses = labels.clone()
    guesses[::4] = (labels[::4] + 1) % num_classes
    logits = 5 * torch.nn.functional.one_hot(guesses, num_classes).double()
    results = [CountResult(t, 0.75, 1.0, 0.75, 0.1 * t, 10.0) for t in (2, 4)]
    evaluation = Evaluation(
        results,
        (4,),
        classes,
        [r.name for r in records],
        labels,
        {2: logits, 4: logits},
        "1x1",
        num_parameters=1,
    )
    evaluation.videos = VideoList(records, classes)
    return Measured(evaluation, Preprocessing(short_side=32, crop_size=32), log=log)


def write_log(path):
    events = [
        {
            "event": "step",
            "epoch": i // 10,
            "step": i + 1,
            "loss": float("nan") if i == 3 else 2 - i / 50,
            "accuracy": i / 50,
        }
        for i in range(50)
    ]
    events += [
        {"event": "validation", "epoch": e, "results": [{"num_frames": t, "top1": e / 10} for t in (2, 4)]}
        for e in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, events)) + '\n{"event": "st', encoding="utf-8")
    return path


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    write_report(
        tmp_path / "report.html", {"net": part(tmp_path, log=log)}, title="a title", command="a command"
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags(text).found
    assert {tag for tag, _ in tags}.isdisjoint({"script", "iframe", "object"})
    for _, attributes in tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in text
    assert "nan" not in re.findall(r'points="([^"]*)"', text)
    assert sum(tag == "svg" for tag, _ in tags) == 3  # over T, loss, accuracy over epochs
    assert sum(tag == "img" for tag, _ in tags) == 3 * 4  # a wrong video of each class, T frames
    assert "3 of 4" in text
    assert "a command" in text
    assert f"torch {torch.__version__}" in html.unescape(text)


def test_names_of_files_and_classes_are_only_text(tmp_path):
    one = part(tmp_path, names=[EVIL, "b\udcff", "</style>"])
    one.evaluation.bad.append(BadVideo(0, EVIL, EVIL))
    one.evaluation.trained_on = [EVIL]
    write_report(tmp_path / "report.html", {EVIL: one}, title=EVIL, command=EVIL)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in Tags(text).found}
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text  # a template it is not, either
    assert r"b\xff" in text


def test_what_is_wrong_with_the_data_is_named(tmp_path):
    one = part(tmp_path)
    one.evaluation.bad.append(BadVideo(0, "broken.mp4", "no decodable frame"))
    one.evaluation.left_out.append(BadVideo(0, "quarantined.mp4", "of the list"))
    one.evaluation.trained_on = ["remembered.mp4"]
    one.training_bad.update({"bad-in-training.mp4": "empty"})
    write_report(tmp_path / "report.html", {"net": one}, title="t", command="c")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in (
        "broken.mp4",
        "no decodable frame",
        "quarantined.mp4",
        "remembered.mp4",
        "bad-in-training.mp4",
    ):
        assert name in text


def test_a_label_that_another_class_fits_far_better_is_doubted_with_its_frames(tmp_path):
    one = part(tmp_path, names=["wave", "clap", "jump"])
    evaluation = one.evaluation
    probabilities = torch.full((12, 3), 0.1)
    probabilities[range(12), evaluation.labels] = 0.8
    probabilities[0] = torch.tensor([0.02, 0.97, 0.01])  # "wave", surely a clap
    probabilities[4] = torch.tensor([0.45, 0.35, 0.2])  # "clap", a mistake without confidence
    evaluation.logits = {4: probabilities.double().log()}
    evaluation.results = evaluation.results[1:]
    assert doubtful_labels(evaluation, 4) == [0]
    assert worst_mistakes(evaluation, 4, besides=[0]) == [4]
    write_report(tmp_path / "report.html", {"net": one}, title="t", command="c")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    Tags(text)
    assert "<b>wave/0.mp4</b>: is it really wave (0.02)? The network says clap, 0.97" in text
    assert "Worst other mistakes" in text
    assert "is clap, taken for wave (45.0 %)" in text
    assert text.count("<img") == 2 * 4  # each of the two once
    evaluation.trained_on = ["wave/0.mp4"]
    assert doubtful_labels(evaluation, 4) == []  # it remembers, it doesn't doubt
    assert worst_mistakes(evaluation, 4) == [0, 4]


def test_a_page_without_doubts_has_no_section_of_them_and_data_problems_are_only_text(tmp_path):
    one = part(tmp_path)
    one.evaluation.logits = {
        t: 5 * torch.nn.functional.one_hot(one.evaluation.labels, 3).double() for t in (2, 4)
    }
    one = replace(one, problems=[EVIL])
    write_report(tmp_path / "report.html", {"net": one}, title="t", command="c")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Doubtful labels" not in text
    assert "every video was recognised" in text
    assert "Data problems" in text
    assert "<script" not in text


def test_accuracies_have_their_wilson_intervals(tmp_path):
    one = part(tmp_path)
    assert one.evaluation.top1_interval(4) == wilson_interval(9, 12)
    assert one.evaluation.to_dict()["results"][0]["top1_interval"] == list(wilson_interval(9, 12))
    assert "top-1 at 4 frames 75.0% (9 of 12 videos), 95 % interval 46.8 to 91.1 %" in top1_sentence(
        one.evaluation
    )
    write_report(tmp_path / "report.html", {"net": one}, title="t", command="c")
    assert "46.8 – 91.1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_video_that_is_gone_has_its_reason_in_place_of_its_frames(tmp_path):
    one = part(tmp_path)
    (tmp_path / "0-0.mp4").unlink()
    write_report(tmp_path / "report.html", {"net": one}, title="t", command="c")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no frames: " in text
    assert text.count("<img") == 2 * 4


@pytest.mark.parametrize(
    ("right", "number", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (0, 0, 0, 1)]
)
def test_wilson_intervals_equal_published_ones(right, number, low, high):
    assert wilson_interval(right, number) == pytest.approx((low, high), abs=1e-4)


def test_evaluate_writes_the_page_with_its_command(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=2).eval()
    classes = ["left", "right"]
    save_checkpoint(tmp_path / "m.safetensors", Checkpoint(model, classes, Preprocessing(32, 32), (2,)))
    for name in classes:
        write_video(tmp_path / "data" / name / "a.mp4", moving_bar(8, rightwards=name == "right"))
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "m.safetensors", "data", "--frames", "2,3", "--output", "out", "--device", "cpu"]
    assert main(arguments) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    Tags(text)
    assert "frameflex " + " ".join(arguments) in text
    assert "It is not known which videos this network was trained on." in text


@pytest.mark.parametrize("method", ["tsm", "separate"])
def test_training_leaves_the_page_in_the_run_s_folder(tmp_path, method):
    data = bar_folder(tmp_path / "data", per_class=2)
    recipe = tiny_recipe(data, tmp_path / "run", method=method, counts=(2, 3), epochs=1)
    recipe.save(tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    for folder in ("2f", "3f") if method == "separate" else (".",):
        text = (tmp_path / "run" / folder / "report.html").read_text(encoding="utf-8")
        Tags(text)
        assert text.count("<svg") == 3
        assert "after epoch 1, the best of this run" in text
        assert "It is not known" not in text  # the checkpoint remembers its videos
        assert "videos were trained on" not in text


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_errors_and_nothing_overflows(tmp_path, width, scheme):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium, and none is in PATH")
    names = ["x" * 150, "Moving something and something away from each other " * 3, *map(str, range(22))]
    log = write_log(tmp_path / "log.jsonl")
    one = part(tmp_path, num_classes=24, names=names, log=log)
    write_report(tmp_path / "report.html", {"net" * 40: one}, title="t" * 200, command="c" * 300)
    problems = []
    switches = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    switches += ["--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            headless=True,
            args=switches,
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        outside = page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter(e => {
                const wide = e.closest('.wide');
                return (!wide || wide === e) && e.getBoundingClientRect().right > innerWidth + 0.5;
            }).map(e => e.outerHTML.slice(0, 80))"""
        )
        scroll = page.evaluate("document.documentElement.scrollWidth")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert problems == []
    assert outside == []
    assert scroll <= width
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
