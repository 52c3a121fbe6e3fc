"""Numbers as tables, pictures and files."""

from frameflex.report.files import write_json, write_predictions
from frameflex.report.html import Measured, wilson_interval, write_report
from frameflex.report.plots import plot_accuracy, plot_adaptive, plot_confusion, save_figure
from frameflex.report.published import published_lines
from frameflex.report.tables import (
    accuracy_table,
    adaptive_sentence,
    adaptive_table,
    comparison_table,
    findings_table,
)

__all__ = [
    "Measured",
    "accuracy_table",
    "adaptive_sentence",
    "adaptive_table",
    "comparison_table",
    "findings_table",
    "plot_accuracy",
    "plot_adaptive",
    "plot_confusion",
    "published_lines",
    "save_figure",
    "wilson_interval",
    "write_json",
    "write_predictions",
    "write_report",
]
