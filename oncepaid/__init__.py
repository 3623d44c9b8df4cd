"""Once paid, done once: USDC on Base in, finished jobs out. Start reading at ARCHITECTURE.md."""

__version__ = "0.1.0"
