"""A run before its first step: what is known of it, what is decided, and the memory that it needs."""
