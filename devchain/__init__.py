"""Dev-only: a local chain with the real USDC contract, and a stand-in for Claude."""
