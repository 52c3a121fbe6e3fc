"""Numbers as tables, pictures and files."""

from frameflex.engine.confidence import wilson_interval
from frameflex.report.files import write_json, write_predictions
from frameflex.report.html import Measured, write_report
from frameflex.report.plots import plot_accuracy, plot_adaptive, plot_confusion, save_figure
from frameflex.report.published import published_lines
from frameflex.report.tables import (
    accuracy_table,
    adaptive_sentence,
    adaptive_table,
    comparison_table,
    findings_table,
    folds_table,
    top1_sentence,
)

__all__ = [
    "Measured",
    "accuracy_table",
    "adaptive_sentence",
    "adaptive_table",
    "comparison_table",
    "findings_table",
    "folds_table",
    "plot_accuracy",
    "plot_adaptive",
    "plot_confusion",
    "published_lines",
    "save_figure",
    "top1_sentence",
    "wilson_interval",
    "write_json",
    "write_predictions",
    "write_report",
]
