"""The contract: what every method must keep with every family, and planted bugs that prove each check can fail."""
