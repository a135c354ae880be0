"""Operations that loraft computes in its own way; each has a plain reference and a function that chooses."""
