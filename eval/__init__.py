"""How good it is: data sets, fit, runs, metrics and reports."""
