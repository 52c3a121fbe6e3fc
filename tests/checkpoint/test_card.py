"""The card beside a checkpoint."""

import yaml
from making import checkpoint

from frameflex.checkpoint import (
    model_card,
)


def test_the_card_tells_what_a_checkpoint_is():
    card = model_card(checkpoint())
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "frameflex"
    assert front["pipeline_tag"] == "video-classification"
    for words in (
        "opening \\| a door",
        "2, 4: one network",
        "rendered in a test",
        "| 4 | 81.2 | 100.0 | 0.31 |",
        "BGR",
    ):
        assert words in card
    unknown = model_card(checkpoint(license="", source="", metrics={}))
    assert yaml.safe_load(unknown.split("---")[1])["license"] == "unknown"
    assert "ask their author" in unknown
    assert "Nothing yet." in unknown
