"""The dataset: images with label, group and split, and its data card."""
