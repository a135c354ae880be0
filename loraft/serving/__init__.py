"""An open model behind OpenAI's HTTP interface: several clients at once, whose answers grow together."""
