"""Numbers as tables and pictures."""

from frameflex.report.tables import (
    accuracy_table,
    adaptive_sentence,
    adaptive_table,
    comparison_table,
    findings_table,
    plot_accuracy,
    plot_adaptive,
    plot_confusion,
    save_figure,
    write_json,
    write_predictions,
)

__all__ = [
    "accuracy_table",
    "adaptive_sentence",
    "adaptive_table",
    "comparison_table",
    "findings_table",
    "plot_accuracy",
    "plot_adaptive",
    "plot_confusion",
    "save_figure",
    "write_json",
    "write_predictions",
]
