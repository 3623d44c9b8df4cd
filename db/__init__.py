"""PostgreSQL: every SQL statement of the project, each beside one typed function."""
