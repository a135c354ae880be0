"""Looking into things: rows of facts about machines and models, for others to print."""
