"""Figures: described once, drawn as pages of a PDF or as plots of a web page."""
