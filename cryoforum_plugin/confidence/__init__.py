"""From posteriors to decisions: calibration, outliers, selection, evaluation."""
