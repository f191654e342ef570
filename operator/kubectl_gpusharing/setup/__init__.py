"""What does the cluster need before its first policy, and which policy suits it?"""
