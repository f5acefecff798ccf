"""Metrics of a binary classifier and their bootstrap intervals."""
