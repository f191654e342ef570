"""Which of NVIDIA's programs give a node its layout, and how does each set of them answer the five questions in `actuator.py`?"""
