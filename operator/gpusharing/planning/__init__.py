"""What must be done next? The pure core: a snapshot and the time in, verdicts and actions out.

The entry point is `rollout.py`; `snapshot/` holds what goes in, what may come out (`actions.py`) and what need not be
computed again (`memo.py`). Each folder answers one question, which its docstring states; imports only go down, in the
order of the contract in pyproject.toml.
"""
