"""SIMULATED node software for the demo and the tests; nothing here is shipped."""
