"""Base models: which families there are, where their files come from, and the one door that loads them."""
