"""Stand-ins and loads that tests and benchmarks share; neither imports the other."""
