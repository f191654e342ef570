"""What is to be done next? The pure core: a snapshot and the time in, verdicts and actions out.

The entry point is `rollout.py`, `actions.py` lists what it may decide, and `memo.py` keeps what need not be computed
again. Each folder answers one question, which its docstring states; imports only go down, in the order of the contract
in pyproject.toml.
"""
