"""From the chain to `payments`: reads transfers to us, complete and in order, and nothing else."""
