"""From `payments` to finished jobs. The stages meet only in the database."""
