"""One page of HTML from any result: what was measured, its table, its figures, and what it lacks."""
