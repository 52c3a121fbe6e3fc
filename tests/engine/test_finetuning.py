"""Starting from a checkpoint, freezing, rates by depth, rare classes, several labels, and nothing at all."""

import csv
import json
import math

import pytest
import torch
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.label_sets import split_label_sets, with_nothing
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import _set_accuracies
from frameflex.engine.finetuning import (
    class_targets,
    class_weights,
    freeze,
    hold_still,
    rate_factors,
    video_weights,
)
from frameflex.engine.loading import EpochBatches
from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.engine.optimization import build_optimizer, parameter_groups
from frameflex.engine.recipe import RecipeError
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.starting import build_model
from frameflex.engine.task import find_videos
from frameflex.engine.training import train
from frameflex.models import TemporalShift, create_model


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    return bar_folder(tmp_path_factory.mktemp("bars"))


def source(path, backbone="test_convnext", classes=("going left", "going up"), **options):
    """A checkpoint to start from."""
    torch.manual_seed(5)
    model = create_model(backbone, num_classes=len(classes), **options).eval()
    pixels = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1, 1, 1), channel_order="bgr", geometry="tsm")
    counts = model.frame_counts or (4,)
    save_checkpoint(path, Checkpoint(model, list(classes), pixels, counts))
    return path


# ----------------------------------------------------------------------------------------------- init


def test_a_checkpoint_brings_its_own_network_pixels_and_rows_of_known_classes(bars, tmp_path):
    path = source(tmp_path / "a.safetensors", shift_div=4)
    recipe = tiny_recipe(bars, tmp_path / "run", counts=(2,), epochs=1, batch_size=12, learning_rate=1e-9)
    recipe.model.backbone, recipe.model.init = None, str(path)
    (best,) = train(recipe)
    trained, start = load_checkpoint(best), load_checkpoint(path)
    assert trained.model.config["backbone"] == "test_convnext"
    assert trained.model.config["shift_div"] == 4
    assert trained.class_names == ["going left", "going right"]
    assert trained.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (trained.preprocessing.channel_order, trained.preprocessing.crop_size) == ("bgr", 32)
    torch.testing.assert_close(trained.model.head.weight[0], start.model.head.weight[0])
    assert not torch.allclose(trained.model.head.weight[1], start.model.head.weight[1], atol=1e-4)


def test_a_checkpoint_without_a_shift_gets_one_and_keeps_every_weight(bars, tmp_path):
    path = source(tmp_path / "a.safetensors", "test_resnet", shift="none")
    recipe = tiny_recipe(bars, tmp_path / "run")
    recipe.model.init = str(path)
    model, start = build_model(recipe, ["going left"]), load_checkpoint(path).model
    assert sum(isinstance(module, TemporalShift) for module in model.modules()) == 4
    state = {name.replace(".net.", "."): value for name, value in model.state_dict().items()}
    for name, value in start.state_dict().items():
        assert name.startswith("head.") or torch.equal(state[name], value)


def test_a_plain_checkpoint_starts_a_frame_flexible_network_that_computes_the_same(bars, tmp_path):
    path = source(tmp_path / "a.safetensors", "test_resnet")
    recipe = tiny_recipe(bars, tmp_path / "run", method="ffn")
    recipe.model.init, recipe.model.frame_scales = str(path), False
    model, start = build_model(recipe, ["going left", "going up"]).eval(), load_checkpoint(path).model
    assert model.frame_counts == (2, 4)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), start(clip))


def test_a_frame_flexible_checkpoint_asks_for_its_own_counts(bars, tmp_path):
    path = source(tmp_path / "a.safetensors", "test_resnet", frame_counts=(2, 4))
    recipe = tiny_recipe(bars, tmp_path / "run")
    recipe.model.init = str(path)
    with pytest.raises(
        RecipeError, match=r"parts for 2, 4 frames; set method to ffn and clip.frame_counts to \[2, 4\]"
    ):
        build_model(recipe, ["a"])
    recipe.method = "ffn"
    assert build_model(recipe, ["a"]).frame_counts == (2, 4)


def test_the_bundled_recipe_takes_any_checkpoint_without_naming_its_network(bars, tmp_path):
    path = source(tmp_path / "a.safetensors", "mobilenetv2_035")
    recipe, _ = parse_recipe(["finetune_folder.yaml", "--data.train", str(bars), "--model.init", str(path)])
    assert build_model(recipe, ["going left"]).config["backbone"] == "mobilenetv2_035"


# ------------------------------------------------------------------------------------- frozen, and rates


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["tsm", "ffn"])
@pytest.mark.parametrize("norms", ["frozen", "first"])
def test_training_leaves_frozen_stages_and_norms_untouched_statistics_included(bars, tmp_path, norms, method):
    recipe = tiny_recipe(
        bars,
        tmp_path / "run",
        method=method,
        epochs=1,
        frozen_stages=2,
        norms=norms,
        learning_rate=0.1,
        batch_size=12,
    )
    torch.manual_seed(recipe.seed)
    before = snapshot(build_model(recipe, ["going left", "going right"]))
    train(recipe)
    after = load_checkpoint(tmp_path / "run" / "last.safetensors").model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    first_two = {
        name for name in before if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))
    }
    norm_tensors = {
        name for name in before if ".bn" in name or ".downsample.2" in name
    }  # test_resnet pools first
    assert same == first_two | norm_tensors
    assert "backbone.layer2.0.conv1.net.weight" not in same


def test_first_keeps_only_the_first_norm_in_training():
    model = create_model("test_resnet", num_classes=2, frame_counts=(2, 4))
    freeze(model, frozen_stages=0, norms="first")
    model.train()
    hold_still(model, frozen_stages=0, norms="first")
    training = {
        name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training
    }
    assert training == {
        "backbone.conv1.1.norms.2",
        "backbone.conv1.1.norms.4",
    }  # the stem is three convolutions
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".norms." in name}
    assert trained == {f"backbone.conv1.1.norms.{t}.{key}" for t in (2, 4) for key in ("weight", "bias")}


def test_more_frozen_stages_than_there_are_is_refused():
    with pytest.raises(ValueError, match="frozen_stages is 9; expected 0 to 5"):
        freeze(create_model("test_resnet", num_classes=2), frozen_stages=9, norms="tuned")


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_convnext", "mobilenetv2_035", "regnety_002", "repvgg_a0"]
)
def test_rates_shrink_block_by_block_from_the_classifier_to_the_stem(backbone):
    model = create_model(backbone, num_classes=2)
    factors = rate_factors(model, 0.5)
    assert factors["head.weight"] == 1
    stem = next(iter(dict(model.backbone.named_parameters())))
    values = sorted(set(factors.values()), reverse=True)
    assert values == [0.5**i for i in range(len(values))]
    assert factors[f"backbone.{stem}"] == values[-1]


def test_layer_decay_multiplies_the_published_rates(bars, tmp_path):
    recipe = tiny_recipe(bars, tmp_path, learning_rate=0.1, layer_decay=0.5)
    model = build_model(recipe, ["a", "b"])
    optimizer = build_optimizer(recipe, model)
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.head.weight)] == pytest.approx(0.5)
    assert rates[id(model.backbone.layer4[0].conv2.weight)] == pytest.approx(0.05)
    assert rates[id(model.backbone.conv1[0].weight)] == pytest.approx(0.1 * 0.5**5)
    assert len(parameter_groups(model, published=True)) == 4


# ------------------------------------------------------------------------------------------ rare classes


def test_class_weights_and_video_weights_make_every_class_count_the_same():
    targets = class_targets([0] * 6 + [1] * 3 + [2], 4)
    weights = class_weights(targets, multi_label=False)
    assert weights[3] == 0  # no video shows it
    assert (weights * targets.sum(0))[:3].tolist() == pytest.approx([10 / 3] * 3)
    drawn = video_weights(targets)
    assert [float(drawn[targets[:, k] == 1].sum()) for k in range(3)] == pytest.approx([1, 1, 1])
    several = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert video_weights(several).tolist() == pytest.approx([(0.5 + 1) / 2, 0.5, 1])
    assert class_weights(several, multi_label=True).tolist() == pytest.approx([0.5, 2, 3])


def test_balanced_sampling_draws_rare_classes_as_often_and_never_the_same_clip_twice():
    labels = [0] * 90 + [1] * 10
    batches = EpochBatches(
        100, batch_size=10, seed=0, frame_counts=(2,), weights=video_weights(class_targets(labels, 2))
    )
    keys = []
    for epoch in range(20):
        batches.epoch = epoch
        keys += [key for batch in batches for key in batch]
        assert [key for batch in batches for key in batch] == keys[-100:]  # of seed and epoch alone
    assert 0.46 < sum(labels[video] for video, _, _ in keys) / len(keys) < 0.54
    assert len({(video, epoch) for video, epoch, _ in keys}) == len(keys)


def test_weighted_loss_equals_the_loop():
    model = torch.nn.Linear(3, 3)
    weights = torch.tensor([0.5, 2.0, 1.0])
    objective = FrameFlexibleObjective(model, class_weights=weights)
    x, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 2, 0])
    loss, logits = objective({4: x}, labels)
    each = [
        -float(row.detach().log_softmax(0)[k]) * float(weights[k])
        for row, k in zip(logits, labels, strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(sum(each) / 5)


# ---------------------------------------------------------------------------------- several labels, none


def test_labels_are_taken_apart_over_both_lists():
    def videos(*labels):
        names = sorted(set(labels))
        return VideoList(
            [VideoRecord(f"{i}.mp4", names.index(n), f"{i}") for i, n in enumerate(labels)], names
        )

    (train_list, validation), sets = split_label_sets(
        [videos("walk|wave", "walk"), videos("wave| walk", "", "run")]
    )
    assert sets.classes == ("run", "walk", "wave")
    assert sets.targets(torch.tensor(train_list.labels)).int().tolist() == [[0, 1, 1], [0, 1, 0]]
    assert sets.targets(torch.tensor(validation.labels)).int().tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="'wave' is not among the 2 classes"):
        split_label_sets([videos("walk|wave")], classes=["walk", "run"])


@pytest.mark.parametrize("reverse_kl", [False, True])
def test_multi_label_loss_equals_the_loop(reverse_kl):
    table = torch.tensor([[True, False, True], [False, False, False]])
    objective = FrameFlexibleObjective(
        torch.nn.Identity(),
        label_sets=table,
        class_weights=torch.tensor([2.0, 1.0, 1.0]),
        kl_weight=0.7,
        reverse_kl=reverse_kl,
        temperature=2,
    )
    teacher, student, labels = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 1])
    loss, _ = objective({4: teacher, 2: student}, labels)

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    entropy = divergence = 0.0
    for row in range(2):
        for k in range(3):
            p, yes = sigmoid(float(teacher[row, k])), bool(table[labels[row], k])
            entropy -= (2.0 if k == 0 else 1.0) * math.log(p) if yes else math.log(1 - p)
            soft, target = sigmoid(float(student[row, k]) / 2), sigmoid(float(teacher[row, k]) / 2)
            if not reverse_kl:
                soft, target = target, soft
            divergence += soft * math.log(soft / target) + (1 - soft) * math.log((1 - soft) / (1 - target))
    assert float(loss) == pytest.approx(entropy / 6 + 0.7 * 4 * divergence / 6, rel=1e-5)


def test_mean_average_precision_equals_the_loop():
    logits, targets = torch.randn(40, 4), torch.rand(40, 4) < 0.3
    targets[:, 3] = False  # a class that does not occur says nothing
    measured = _set_accuracies(logits, targets)
    expected = []
    for k in range(3):  # precision at each video of the class, going down the ranking
        ranking = sorted(range(40), key=lambda i, k=k: -float(logits[i, k]))
        found = [rank for rank, i in enumerate(ranking, start=1) if targets[i, k]]
        expected.append(sum(number / rank for number, rank in enumerate(found, start=1)) / len(found))
    assert measured["mean_average_precision"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    shown = targets.any(1)
    hits = [bool(targets[i, logits[i].argmax()]) for i in range(40) if shown[i]]
    assert measured["top1"] == pytest.approx(sum(hits) / len(hits))


def test_videos_of_nothing_become_a_class_of_their_own_on_both_sides(bars, tmp_path):
    for i in range(5):
        write_video(tmp_path / "idle" / f"{i}.mp4", moving_bar(6, rightwards=True, seed=i))
    recipe = tiny_recipe(bars, tmp_path / "run")
    recipe.data.nothing = str(tmp_path / "idle")
    training, validation = find_videos(recipe)
    assert training.classes == validation.classes == ("going left", "going right", "nothing")
    assert (training.labels.count(2), validation.labels.count(2)) == (4, 1)
    names = VideoList([VideoRecord("a", 0, "a")], ["nothing"])
    assert with_nothing(names, [VideoRecord("b", 0, "b")], "nothing").labels == [0, 0]


@pytest.mark.parametrize(("method", "class_balance"), [("tsm", "sampling"), ("ffn", "loss")])
def test_a_multi_label_run_ends_in_a_checkpoint_with_a_probability_for_each_class(
    tmp_path, method, class_balance, capsys
):
    rows = []
    for i in range(12):
        rightwards = i % 2 == 0
        file = write_video(tmp_path / f"{i}.mp4", moving_bar(8, rightwards=rightwards, seed=i))
        rows.append((file.name, "right|bar" if rightwards else "left|bar" if i % 3 else "left"))
    idle = [
        write_video(tmp_path / "idle" / f"{i}.mp4", moving_bar(6, rightwards=True, seed=i)[:1].repeat(6, 0))
        for i in range(4)
    ]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    recipe = tiny_recipe(tmp_path / "list.csv", tmp_path / "run", method=method, epochs=1)
    recipe.data.multi_label, recipe.data.nothing = True, str(tmp_path / "idle")
    recipe.objective.class_balance = class_balance
    (best,) = train(recipe)
    checkpoint = load_checkpoint(best)
    assert checkpoint.class_names == ["bar", "left", "right"]
    assert checkpoint.multi_label
    result = checkpoint.metrics["validation"]["results"][0]
    assert 0 < result["mean_average_precision"] <= 1
    recognizer = Recognizer(checkpoint, device="cpu")
    logits = recognizer.logits(idle[0])
    answers = {answer.label: answer.probability for answer in recognizer(idle[0])}
    for name, logit in zip(checkpoint.class_names, logits.tolist(), strict=True):
        assert answers[name] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    capsys.readouterr()
    arguments = [
        "evaluate",
        str(best),
        str(tmp_path / "list.csv"),
        "--workers",
        "0",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    assert "mAP %" in capsys.readouterr().out
    assert (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "confusion.png").exists()
    folder = checkpoint.save_pretrained(tmp_path / "folder")
    assert main(["evaluate", str(folder), str(tmp_path / "list.csv"), "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["mean_average_precision"] > 0
