"""Problems whose gradient no torch module has: each an exact gradient and draws for `fganalysis.measure`."""
