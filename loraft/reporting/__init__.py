"""Whether a run did any good: what its files tell, what its model tells, and which key to change next."""
