"""Compare methods of finding heads: same prompts, counted cost, and the best set of every size."""
