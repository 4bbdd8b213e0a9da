"""Figures and pages that show what a run did."""

from cryoforum_plugin.report.write import Report, prepare_report, write_report

__all__ = ["Report", "prepare_report", "write_report"]
