"""What runs on CUDA only: recorded graphs, persistent kernels, and the check before one is trusted.

Nothing here has run on a GPU yet. On a CPU the tests replay recordings by calling the function again,
run the kernels in Triton's interpreter, which is one thread and shows no race, and compile them for a
GPU. `pytest -m gpu` checks them where there is one, `ctrnn bench --device cuda` times them.
"""
