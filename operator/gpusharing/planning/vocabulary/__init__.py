"""In which words does the operator report? The reasons, the findings, and the blockers of pods."""
