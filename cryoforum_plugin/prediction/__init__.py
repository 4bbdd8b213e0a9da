"""Prediction: streaming, test-time views, recentring."""
