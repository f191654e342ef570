"""`kubectl gpusharing`: a package of its own that asks the operator's planner. Nothing of the operator imports it."""
