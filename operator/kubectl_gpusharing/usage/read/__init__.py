"""What does Prometheus record about the use of GPUs, and which records are missing?"""
