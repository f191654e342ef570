"""Which candidates begin now, within the allowance of their node pool and the operator-wide cap?"""
