"""What does Prometheus have about the use of GPUs, and of what is there no record?"""
