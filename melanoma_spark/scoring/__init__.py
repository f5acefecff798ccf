"""Scores of new images: batches, their ledger, columns, worklist and status."""
