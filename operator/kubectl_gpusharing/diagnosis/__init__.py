"""Why is a node not done, why does a pod wait, and what does a colleague need for troubleshooting?"""
