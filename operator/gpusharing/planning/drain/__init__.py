"""Which pods must leave a node, what keeps them, and is it idle?"""
