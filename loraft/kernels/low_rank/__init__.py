"""The low-rank update of a linear module as loraft computes it: LoRA's, DoRA's, and starts that are taken off again."""
