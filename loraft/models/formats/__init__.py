"""Models that are no folder of transformers: .gguf files, archives, and those that packages of PyPI carry."""
