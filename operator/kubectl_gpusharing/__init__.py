"""`kubectl gpusharing`: a package of its own that asks the operator's planner, and that nothing of the operator imports."""
