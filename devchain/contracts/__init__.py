"""Other people's wallets and payment contracts, from npm, on the dev chain."""
