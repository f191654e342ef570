"""What does the cluster look like now, as the operator would see it?"""
