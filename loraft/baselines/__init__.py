"""What a method or a model bought: measured beside what is simpler."""
