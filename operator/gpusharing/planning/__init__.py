"""What is to be done next? The pure core: a snapshot and the time in, verdicts and actions out.

The front door is `rollout.py`, what it may decide `actions.py`, and `memo.py` keeps what need not be worked out again.
Each folder answers one question, which its docstring says; imports go down only, in the order of the contract in
pyproject.toml.
"""
