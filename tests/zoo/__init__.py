"""Tiny random models of every type that transformers knows, and what is done with each."""
