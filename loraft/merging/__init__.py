"""Adapters folded into their base, and the proof that they were."""
