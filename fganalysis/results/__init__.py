"""Names, files, tables and figures of results."""
