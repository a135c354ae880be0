"""Values drawn for people, with rich."""
