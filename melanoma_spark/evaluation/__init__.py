"""Metrics of trained and registered models on test images, and the report."""
