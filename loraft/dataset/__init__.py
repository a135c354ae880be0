"""From the rows of a run to its batches: tokenized, cached, held out, counted and drawn."""
