"""Studies: one question a file; one Dataset and its figures an answer. Run as ``python -m studies.NAME``."""
