"""Estimators around another estimator or a function."""
