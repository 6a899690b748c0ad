"""How the entries of a latency table are run and timed; the table itself, and what it predicts, is not here."""
