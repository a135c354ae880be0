"""Operations that loraft computes in its own way: a plain reference, forms for CPU and CUDA, and what chooses."""
