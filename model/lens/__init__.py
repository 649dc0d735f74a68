"""Looking inside a network: what is computed, as data."""
