"""A classifier that is fitted before the first step of fine-tuning."""

import pytest
import torch
from helpers import bar_folder, tiny_recipe

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.clips import ClipDataset
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.engine.fitted_head import fit_head
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.starting import build_model, preprocessing_of
from frameflex.engine.task import read_task
from frameflex.engine.training import train
from frameflex.models import create_model


def save_tiny(path, class_names):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=len(class_names)).eval()
    save_checkpoint(path, Checkpoint(model, class_names, Preprocessing(short_side=32, crop_size=32), (4,)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return bar_folder(tmp_path_factory.mktemp("fitted") / "videos", per_class=4)


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.safetensors"
    save_tiny(path, ["waving", "clapping", "walking"])
    return path


def fitting(data, output, start, **training):
    recipe = tiny_recipe(data, output, counts=(4,), **training)
    recipe.model.__dict__.update(init=str(start), backbone=None, head="fitted")
    return recipe


def test_the_fit_is_at_the_optimum_of_its_training_videos_and_changes_nothing_else(data, tmp_path, start):
    recipe = fitting(data, tmp_path / "run", start)
    task = read_task(recipe)
    model = build_model(recipe, task.classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = preprocessing_of(recipe, model)
    fit_head(model, recipe, task.training, pixels, torch.device("cpu"))
    after = model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        "head.weight",
        "head.bias",
    }
    clips = ClipDataset(task.training, frame_counts=[4], transform=EvalTransform(pixels), training=False)
    with torch.no_grad():
        answers = torch.stack([model(clips[i].clips[4])[0] for i in range(len(clips))])
    labels = torch.tensor(task.training.labels)
    shares = torch.nn.functional.one_hot(labels).double().mean(0)
    # At the optimum of cross-entropy with a free bias, mean probabilities are the classes' shares.
    torch.testing.assert_close(answers.double().softmax(1).mean(0), shares, atol=1e-3, rtol=0)
    assert (answers.argmax(1) == labels).all()


def test_a_classifier_whose_classes_are_known_is_left_alone(data, tmp_path):
    path = tmp_path / "known.safetensors"
    recipe = fitting(data, tmp_path / "run", path)
    classes = list(read_task(tiny_recipe(data, tmp_path / "none")).classes)
    save_tiny(path, classes)
    model = build_model(recipe, classes)
    before = model.head.weight.clone()
    task = read_task(recipe)
    fit_head(model, recipe, task.training, preprocessing_of(recipe, model), torch.device("cpu"))
    assert torch.equal(model.head.weight, before)


def test_a_run_begins_with_the_fit_and_goes_on_from_there(data, tmp_path, start, caplog):
    caplog.set_level("INFO")
    [fitted] = train(fitting(data, tmp_path / "fitted", start, epochs=1, learning_rate=1e-9))
    assert "the classifier starts as logistic regression" in caplog.text
    made = load_checkpoint(fitted)
    recipe = fitting(data, tmp_path / "again", start)
    task = read_task(recipe)
    model = build_model(recipe, task.classes)
    fit_head(model, recipe, task.training, made.preprocessing, torch.device("cpu"))
    torch.testing.assert_close(made.model.head.weight, model.head.weight, atol=1e-4, rtol=1e-3)
    caplog.clear()
    train(fitting(data, tmp_path / "fitted", start, epochs=1, learning_rate=1e-9), resume=True)
    assert "the classifier starts" not in caplog.text


def test_it_is_not_chosen_unasked(data, start):
    """On a pretrained EfficientNet its first loss was above 100."""
    assert parse_recipe([str(data), "--init", str(start)])[0].model.head == "new"


def test_without_a_checkpoint_to_start_from_it_is_an_error_that_says_what_to_do(data, tmp_path, capsys):
    assert main(["train", str(data), "--model.head", "fitted", "--output", str(tmp_path / "run")]) == 1
    assert "model.head fitted goes with model.init" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
