"""Data: files become rows, rows become conversations, conversations become tokens with a loss mask, and batches."""
