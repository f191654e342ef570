"""Why is a node not done, why does a pod wait, and what does somebody else need to find out?"""
