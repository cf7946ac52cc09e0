"""Products with matrices as they are stored: from codes, never from a decoded matrix.

    product = product_for(packed, device, dtype)      # `choose`: the fastest that there is
    y = product.linear(x)                             # [n, q] -> [n, p]

`packed` is a matrix in its sections, `plain` runs every kind of every stage by torch alone; beside
it stand kernels for the forms that matter. A kernel is given checked matrices only.
"""
