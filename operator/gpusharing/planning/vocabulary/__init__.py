"""The words for what is wrong: every reason, and how blockers are reported."""
