"""What only a CPU takes while it trains."""
