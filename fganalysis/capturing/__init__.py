"""A network frozen on a batch, and every check that it can be measured."""
