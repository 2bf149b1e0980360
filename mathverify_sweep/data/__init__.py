"""Rows with a verdict: read, split, prompted, encoded, made. Knows no model, no database, no study."""
