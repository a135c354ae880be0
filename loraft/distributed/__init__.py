"""The processes that train one run together: who they are, and what they agree on."""
