"""Files, folders and the Hub: atomic writes, checksums, caches, and what happens when a disk or memory is full."""
