"""Text to tokens: chat templates, assistant turns, the border of prompt and answer, control tokens, long texts."""
