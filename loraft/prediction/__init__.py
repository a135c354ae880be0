"""Classes of texts, from a classifier that was trained: for one text or a file of them."""
