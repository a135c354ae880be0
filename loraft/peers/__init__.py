"""Configs of other tools, read as configs of loraft: each key is translated, or named with the reason why not."""
