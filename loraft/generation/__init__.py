"""Answers, one token a step: `sampling` chooses, `context` reads, `detokenize` spells, `engine` does it all."""
