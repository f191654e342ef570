"""In which words is it said? Every reason, why something is not so, and how those who block are told."""
