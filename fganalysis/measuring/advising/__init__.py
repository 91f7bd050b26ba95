"""Advice on a training with estimated gradients, from Datasets alone: `fganalysis.measuring.advise`."""
