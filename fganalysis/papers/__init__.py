"""Metrics as single papers define them: each a plug-in, registered by the public `fganalysis.register_metric`."""
