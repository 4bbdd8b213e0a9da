"""Figures and pages that show what a run did."""

from cryoforum_plugin.report.html import write_report

__all__ = ["write_report"]
