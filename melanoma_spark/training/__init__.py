"""Features, heads, fine-tuning, and the search for a head."""
