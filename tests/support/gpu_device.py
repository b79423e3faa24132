"""Where the tests run the GPU backend; imported before anything that imports Triton.

Without a CUDA device its kernels run on the CPU, in Triton's interpreter, which is chosen when they
are first imported.
"""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
