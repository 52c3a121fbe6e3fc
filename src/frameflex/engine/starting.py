"""Where a run starts: the network of a recipe, from its backbone's weights or another checkpoint, and its pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.engine.recipe import DEFAULT_BACKBONE, Recipe, RecipeError
from frameflex.models import TSM, create_model, make_frame_flexible

logger = logging.getLogger(__name__)


def build_model(recipe: Recipe, classes: Sequence[str]) -> TSM:
    """The network of a recipe, its weights loaded or drawn from torch's global generator.

    Args:
        recipe: of the run.
        classes: a logit for each.

    Raises:
        RecipeError: if the recipe's network is not that of ``model.init``.
    """
    options = recipe.model
    if options.init:
        return _start_from(load_checkpoint(options.init), recipe, classes)
    return create_model(
        options.backbone or DEFAULT_BACKBONE,
        num_classes=len(classes),
        dropout=options.dropout,
        shift=options.shift,
        shift_div=options.shift_div,
        backbone_options=options.backbone_options,
        pretrained=options.pretrained,
        frame_counts=recipe.trained_counts if recipe.method == "ffn" else (),
        frame_norms=options.frame_norms,
        frame_scales=options.frame_scales,
    )


def _start_from(source: Checkpoint, recipe: Recipe, classes: Sequence[str]) -> TSM:
    """The network of another checkpoint with its weights; rows of its classifier go to classes of the same name."""
    options, counts = recipe.model, recipe.trained_counts
    config = dict(source.model.config)
    flexible = source.model.frame_counts
    if options.backbone not in (None, config["backbone"]):
        raise RecipeError(
            f"model.init has {config['backbone']}, but model.backbone is {options.backbone}; set that to "
            "null, or leave model.init out"
        )
    if flexible and (recipe.method != "ffn" or flexible != counts):
        raise RecipeError(
            f"model.init has {config['backbone']} with parts for {', '.join(map(str, flexible))} frames; set "
            f"method to ffn and clip.frame_counts to [{', '.join(map(str, flexible))}]"
        )
    if config["shift"] == "none" and options.shift != "none":
        config["shift_div"] = options.shift_div
    config |= {"num_classes": len(classes), "dropout": options.dropout, "shift": options.shift}
    model = create_model(**config)
    given = source.model.state_dict()
    if options.shift != source.model.config["shift"]:  # the shift has no weights, but a name
        places = {name.replace(".net.", "."): name for name in model.state_dict()}
        given = {places.get(name.replace(".net.", "."), name): tensor for name, tensor in given.items()}
    rows = {name: row for row, name in enumerate(source.class_names)}
    kept = [(row, rows[name]) for row, name in enumerate(classes) if name in rows]
    for key in ("head.weight", "head.bias"):
        head = model.state_dict()[key].clone()
        for row, origin in kept:
            head[row] = given[key][origin]
        given[key] = head
    model.load_state_dict(given)
    if recipe.method == "ffn" and not flexible:
        make_frame_flexible(model, counts, norms=options.frame_norms, scales=options.frame_scales)
    new = sorted(set(classes) - rows.keys())
    logger.info(
        "started from a checkpoint: %d of %d classes keep their classifier row%s",
        len(kept),
        len(classes),
        f"; new: {', '.join(new[:10])}{', …' if new[10:] else ''}" if new else "",
    )
    return model


def image_start(recipe: Recipe) -> Recipe:
    """Of the network that training begins with: of images alone, without a shift, or of ``model.init``."""
    if recipe.model.init:
        return recipe
    images = replace(recipe.model, shift="none")  # which doesn't go with clips played backwards
    return replace(recipe, method="tsm", model=images, clip=replace(recipe.clip, reverse=False))


def preprocessing_of(recipe: Recipe, model: TSM) -> Preprocessing:
    """Sizes, mean and std of the recipe, or else what ``model.init`` or the backbone's ImageNet weights expect."""
    if recipe.model.init:
        known = load_checkpoint(recipe.model.init).preprocessing
    else:
        expected: Any = model.backbone.pretrained_cfg  # timm's
        known = Preprocessing(mean=expected["mean"], std=expected["std"])
    return replace(
        known,
        short_side=recipe.clip.short_side,
        crop_size=recipe.clip.crop_size,
        fit=recipe.clip.fit,
        mean=recipe.clip.mean or known.mean,
        std=recipe.clip.std or known.std,
    )
