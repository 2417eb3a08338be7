"""The HTTP API over any `Rewards`; it knows nothing of Ray."""
