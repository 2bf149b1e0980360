"""What people and programs see of a study: rows, tables in a terminal, figures, and one HTML page."""
