"""Pickled weights made into safetensors: opened in a process that can do nothing else, and verified afterwards."""
