"""How a module's outputs depend on its weights, and so how guesses at its outputs are guesses at its weights."""
