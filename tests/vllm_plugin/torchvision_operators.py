"""Names of operators that torchvision looks for when it is imported, where its build is for CUDA and torch's is not.

Python runs this at its start, by a .pth file in the environment of the tests: vLLM starts processes of its own.
"""

import sys
from typing import Any

OPERATORS = ("nms", "qnms")


class _BeforeTorchvision:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            sys.torchvision_operators = torch.library.Library("torchvision", "FRAGMENT")  # defined while it lives
            for operator in OPERATORS:
                arguments = "Tensor dets, Tensor scores, float iou_threshold"
                sys.torchvision_operators.define(f"{operator}({arguments}) -> Tensor")


sys.meta_path.insert(0, _BeforeTorchvision())
