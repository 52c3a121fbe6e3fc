"""The baseline: logistic regression on frozen features of the training videos."""

import json

import timm
import torch
from helpers import bar_folder, tiny_recipe

from frameflex.cli import main
from frameflex.engine.baseline import fit_logistic
from frameflex.engine.training import train


def test_the_fit_has_no_gradient_left_and_separates_what_can_be():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 5, generator=generator)
    features[:, :3] += 6 * torch.nn.functional.one_hot(labels, 3)
    answer = fit_logistic(features, labels, 3)
    assert (answer(features).argmax(1) == labels).all()
    # At the optimum of cross-entropy with a free bias, mean probabilities are the classes' shares.
    shares = answer(features).softmax(1).mean(0)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=torch.double), atol=1e-4, rtol=0)


def test_evaluate_prints_the_baseline_beside_and_refuses_features_of_random_weights(tmp_path, capsys):
    data = bar_folder(tmp_path / "data", per_class=3)
    recipe = tiny_recipe(data, tmp_path / "run", epochs=1)
    recipe.clip.__dict__["reverse"] = True  # as `frameflex train` chooses for left and right
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    recipe.model.__dict__["pretrained"] = str(weights)
    [path] = train(recipe)
    arguments = ["evaluate", str(path), str(data), "--baseline", "--device", "cpu", "--workers", "0"]
    assert main([*arguments, "--json", "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["baseline"]["num_training"] == 6
    best = max(found["baseline"][kind] for kind in ("mean", "mean_and_deviation", "mean_and_change"))
    assert ("NOT BETTER" in err) == (found["results"][-1]["top1"] <= best)
    assert "logistic regression" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    (tmp_path / "link").symlink_to(data)  # the same videos by another path are not fitted to and measured on
    again = ["evaluate", str(path), str(tmp_path / "link" / "train"), *arguments[3:]]
    assert main([*again, "--include-trained"]) == 1
    assert "among those that were trained on" in capsys.readouterr().err

    [path] = train(tiny_recipe(data, tmp_path / "random", epochs=1))
    assert main(["evaluate", str(path), *arguments[2:]]) == 1
    assert "random weights" in capsys.readouterr().err
