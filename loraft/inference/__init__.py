"""What a trained model answers: text, token by token, or the class of a text."""
