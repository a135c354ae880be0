"""What `compare_methods` tries where nothing else is said. It loads in no time, for help."""

from __future__ import annotations

from loraft.config.choices import Method

METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
STEPS = 20
