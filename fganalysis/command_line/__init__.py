"""The command `fganalysis`: what people do without writing a program."""
