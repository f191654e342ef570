"""What is to be done next? The pure core: a snapshot and the time in, verdicts and actions out.

On top stand the front door (`rollout.py`) and what it may decide (`actions.py`). Each folder answers one question,
which its docstring says; imports go down only, in the order of the contract in pyproject.toml.
"""
