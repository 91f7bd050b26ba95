"""Verdicts and checks for test suites; `fganalysis.testing` exports them."""
