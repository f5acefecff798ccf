"""Drift of batches from the training images."""
