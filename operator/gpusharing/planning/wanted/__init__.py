"""What a node should become, which configuration achieves that, and whether the node is there yet."""
