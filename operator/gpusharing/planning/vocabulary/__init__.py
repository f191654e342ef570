"""In which words is it said? Every reason, why something is not as it should be, and how blockers are reported."""
