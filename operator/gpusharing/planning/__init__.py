"""What must be done next? The pure core: a snapshot and the time in, verdicts and actions out.

The entry point is `plan_rollout`. `snapshot/` holds what goes in, what may come out, and what need not be computed
again. Each folder answers one question, which its docstring states; imports only go down, in the order of the contract
in pyproject.toml.
"""
