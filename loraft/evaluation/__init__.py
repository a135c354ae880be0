"""How good answers are: `metrics` turns counts and texts into figures."""
