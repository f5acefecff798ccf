"""Images: decoding, hashes, quality, augmentation, and drawn lesions."""
