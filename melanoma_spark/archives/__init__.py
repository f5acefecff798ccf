"""Archives of images: listing and reading their files, their containers, and their tables."""
